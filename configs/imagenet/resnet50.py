"""ResNet-50 by torchvision's first recipe on ImageNet: the 90 epochs that most papers compare with.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/resnet50.py

Batch 256 for 90 epochs, for one large GPU or a node of 8 (theirs: 8 GPUs with 32 images each). It has not been run
here.
Published: 76.130 / 92.862 % top-1 / top-5, one crop of 224 from 256 pixels (torchvision's IMAGENET1K_V1). The
paper (He et al. 2016, table 3) has 22.85 / 6.71 % error with ten crops, by the recipe of
configs/imagenet/resnet34.py.

What differs from torchvision: BatchNorm sees the whole batch, not one GPU's 32 images;
--config.parallel.batch_norm=local changes that. On a larger batch the rate grows with it: 0.4 for 1,024 images,
after a warm-up of 5 epochs (Goyal et al. 2017).
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
    return TrainConfig(
        batch_size=256,
        duration="90 epochs",
        model=ModelConfig(name="resnet50"),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random_resized",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random"),
        optimizer=OptimizerConfig(
            learning_rate=0.1, momentum=0.9, weight_decay=1e-4, bias_weight_decay=1e-4, norm_weight_decay=1e-4
        ),
        schedule=ScheduleConfig(name="step", every="30 epochs", factor=0.1),
        evaluation=EvaluationConfig(shorter_side=256),
    )
