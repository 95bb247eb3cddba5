"""ResNeXt-50 with 32 groups of 4 channels by torchvision's recipe of 2021 on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/resnext50_32x4d_modern.py

Batch 1,024 for 600 epochs, for a node of 8 GPUs with 128 images each, as theirs. It has not been run here.
Published: 81.116 / 95.478 % top-1 / top-5, one crop of 224 from 232 pixels, averaged parameters (torchvision's
account of the recipe, 2021); its weights IMAGENET1K_V2 have 81.198 / 95.340 %.

What differs from torchvision: the rate changes at every step, not every epoch; the average's decay rises from 0.1
instead of starting after the warm-up; BatchNorm sees the whole batch, not one GPU's 128 images, which
--config.parallel.batch_norm=local changes; and the network computes in bfloat16 with float32 parameters.
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
        batch_size=1024,
        duration="600 epochs",
        label_smoothing=0.1,
        model=ModelConfig(name="resnext50_32x4d", dtype="bfloat16"),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=176,
            crop="random_resized",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random", policy="trivial_augment_wide", erasing=0.1, mixup=0.2, cutmix=1.0),
        optimizer=OptimizerConfig(
            learning_rate=0.5,
            momentum=0.9,
            weight_decay=2e-5,
            bias_weight_decay=2e-5,
            norm_weight_decay=0.0,
            # torchvision's decay is 1 - 2e-5 * 1,024 * 32 / 600 every 32 steps; this is the same per step.
            ema_decay=0.999966,
        ),
        schedule=ScheduleConfig(name="cosine", warmup="5 epochs", warmup_factor=0.01),
        evaluation=EvaluationConfig(image_size=224, shorter_side=232),
    )
