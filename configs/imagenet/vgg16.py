"""VGG-16 (configuration D) with scale jittering, on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/vgg16.py

Batch 256 for 74 epochs, for a node of 8 GPUs or TPU cores (theirs: 4 GPUs of 6 GB); on a smaller device
--config.parallel.micro_batches=None splits a step into micro-batches. It has not been run here.
Published: 25.6 / 8.1 % top-1 / top-5 error, the whole image at 384 pixels, its classifier applied as a convolution
(Simonyan, Zisserman 2015, table 3). Trained with a shorter side of 256 alone, the paper has 27.0 / 8.8 %.

What differs: all layers start from torchvision's distributions, and not the first and last from a trained network
of eleven layers. The rate was divided by ten by hand, three times; here after five evaluations without a better
one. Ten crops of 224 stand for the classifier as a convolution: ours pools the last feature map to 7x7 at any
image size. Biases do not decay; the paper does not say whether they do.
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
        duration="74 epochs",
        model=ModelConfig(name="vgg16"),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random",
            shorter_side=(256, 512),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random", lighting=0.1),
        optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="plateau", patience=5, factor=0.1),
        evaluation=EvaluationConfig(shorter_side=384, views="ten_crop", batch_size=64),
    )
