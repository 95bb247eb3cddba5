"""ResNeXt-50 with 32 groups of 4 channels by its authors' recipe on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/resnext50_32x4d.py

Batch 256 for 100 epochs, for a node of 8 GPUs with 32 images each, as theirs. It has not been run here.
Published: 22.2 % top-1 error, one crop of 224 from 256 pixels (Xie et al. 2017, table 3); 77.618 / 93.698 % top-1
/ top-5 for torchvision's weights, by a recipe without jitter, lighting and Nesterov's momentum.

Jitter, lighting, Nesterov's momentum, decay and drops are those of the released code (fb.resnet.torch). What
differs: BatchNorm sees the whole batch, not one GPU's 32 images; --config.parallel.batch_norm=local changes that.
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
    decay = 1e-4
    return TrainConfig(
        batch_size=256,
        duration="100 epochs",
        model=ModelConfig(name="resnext50_32x4d"),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random_resized",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random", color_jitter=(0.4, 0.4, 0.4, 0.0), lighting=0.1),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=decay,
            bias_weight_decay=decay,
            norm_weight_decay=decay,
        ),
        schedule=ScheduleConfig(name="step", every="30 epochs", factor=0.1),
        evaluation=EvaluationConfig(shorter_side=256),
    )
