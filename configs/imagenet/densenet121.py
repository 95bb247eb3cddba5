"""DenseNet-121 by its authors' recipe on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/densenet121.py

Batch 256 for 90 epochs, for a node of 4 or 8 GPUs (theirs: 4); on one, --config.model.options.remat=True needs
less memory. It has not been run here.
Published: 25.02 / 7.71 % top-1 / top-5 error, one crop of 224 from 256 pixels, and 23.61 / 6.66 % with
--config.evaluation.views=ten_crop (Huang et al. 2017, table 3); torchvision's weights have 74.434 / 91.972 % top-1
/ top-5.

Jitter, lighting, Nesterov's momentum and decay are those of the released code (fb.resnet.torch). What differs:
BatchNorm sees the whole batch, not the images of one GPU; --config.parallel.batch_norm=local changes that.
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
        duration="90 epochs",
        model=ModelConfig(name="densenet121"),
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
        schedule=ScheduleConfig(name="multi_step", milestones=("30 epochs", "60 epochs"), factor=0.1),
        evaluation=EvaluationConfig(shorter_side=256, batch_size=64),
    )
