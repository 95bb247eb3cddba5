"""ResNet-18 on Fashion-MNIST, images mirrored and shifted, with a stem for small images.

    python -m flaxcnn prepare fashion_mnist
    python train.py --config=configs/fashion_mnist/resnet18.py

Batch 128 for 100 epochs, for one GPU. It has not been run here.
Published: 0.949, the test split as it is, in the dataset's own list of benchmarks, with mirroring both ways,
shifts and rotations.

That entry has no recipe, so rates, decay and length here are ours. No option mirrors upside down or rotates, and
the images are not in color; mirroring left to right and shifts by up to a tenth remain.
"""

from ml_collections import ConfigDict

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=128,
        duration="100 epochs",
        model=ModelConfig(name="resnet18", options=ConfigDict({"stem": "cifar"})),
        data=DataConfig(name="fashion_mnist", mean=(0.286,), std=(0.353,)),
        augment=AugmentConfig(translation=0.1, flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup="1 epochs"),
    )
