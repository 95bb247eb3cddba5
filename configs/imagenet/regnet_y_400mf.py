"""RegNetY-400MF by its authors' recipe (pycls) on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/regnet_y_400mf.py

Batch 1,024 for 100 epochs, for a node of 8 GPUs with 128 images each, as theirs. It has not been run here.
Published: 25.90 % top-1 error, one crop of 224 from 256 pixels, the mean of five runs (Radosavovic et al. 2020, as
in pycls' table); 74.046 / 91.716 % top-1 / top-5 for torchvision's first weights, by a recipe without lighting.

Nesterov's momentum, lighting and weight decay on all parameters are pycls' defaults. What differs: its rate
changes once an epoch, ours at every step; it recomputes BatchNorm's statistics before each evaluation, ours are
running averages; and BatchNorm sees the whole batch, not the images of one GPU, which
--config.parallel.batch_norm=local changes.
"""

from flaxcnn.config import (
    AugmentConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    decay = 5e-5
    return TrainConfig(
        batch_size=1024,
        duration="100 epochs",
        model=ModelConfig(name="regnet_y_400mf"),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random_resized",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random", lighting=0.1),
        optimizer=OptimizerConfig(
            learning_rate=0.8,
            momentum=0.9,
            nesterov=True,
            weight_decay=decay,
            bias_weight_decay=decay,
            norm_weight_decay=decay,
        ),
        schedule=ScheduleConfig(name="cosine", warmup="5 epochs", warmup_factor=0.1),
        evaluation=EvaluationConfig(shorter_side=256),
    )
