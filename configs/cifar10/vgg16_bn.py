"""VGG-16 with BatchNorm on CIFAR-10, its dense layers cut down to 512.

    python -m flaxcnn prepare cifar10
    python train.py --config=configs/cifar10/vgg16_bn.py

Batch 128 for 200 epochs, for one GPU. It has not been run here.
Published: 92.64 % for the VGG16 of pytorch-cifar, the test split as it is; the paper (Simonyan, Zisserman 2015)
has no figure for CIFAR.

The recipe is pytorch-cifar's. What differs: its classifier is one layer, this one keeps fc6 and fc7 with 512
channels and dropout, because no option leaves them out: 15,253,578 parameters against 14,728,266. The rate changes
at every step, not every epoch, and pixels are divided by the standard deviation of all pixels, not by the mean of
the images' standard deviations.
"""

from ml_collections import ConfigDict

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=128,
        duration="200 epochs",
        model=ModelConfig(name="vgg16_bn", options=ConfigDict({"pooled_size": 1, "hidden": 512})),
        data=DataConfig(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augment=AugmentConfig(crop_padding=4, flip="random"),
        optimizer=OptimizerConfig(
            learning_rate=0.1, momentum=0.9, weight_decay=5e-4, bias_weight_decay=5e-4, norm_weight_decay=5e-4
        ),
        schedule=ScheduleConfig(name="cosine"),
    )
