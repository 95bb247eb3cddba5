"""ResNet-34 by the paper's own recipe on ImageNet: scale jittering, 600,000 steps, ten crops.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/resnet34.py

Batch 256 for 600,000 steps (120 epochs), for one GPU or a node of 8. It has not been run here.
Published: 24.52 / 7.46 % top-1 / top-5 error, the mean softmax of ten crops of 224 from 256 pixels (He et al.
2016, table 3, option B, which is this network); with one crop torchvision's weights have 73.314 / 91.420 %, by
another recipe.

What differs: the paper divides the rate by ten "when the error plateaus", here after ten evaluations without a
better one; it subtracts the mean per pixel, not per channel, and does not divide by the standard deviation.
Weights, biases and BatchNorm decay alike, which the paper leaves open. BatchNorm sees the whole batch, not the
images of one GPU; --config.parallel.batch_norm=local changes that.
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
        duration="600000 steps",
        model=ModelConfig(name="resnet34"),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random",
            shorter_side=(256, 480),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random", lighting=0.1),
        optimizer=OptimizerConfig(
            learning_rate=0.1, momentum=0.9, weight_decay=1e-4, bias_weight_decay=1e-4, norm_weight_decay=1e-4
        ),
        schedule=ScheduleConfig(name="plateau", patience=10, factor=0.1),
        evaluation=EvaluationConfig(shorter_side=256, views="ten_crop", batch_size=64),
    )
