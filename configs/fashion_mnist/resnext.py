"""A small ResNeXt on Fashion-MNIST: one bottleneck of 4 groups a stage behind an ImageNet stem.

    python -m flaxcnn prepare fashion_mnist
    python train.py --config=configs/fashion_mnist/resnext.py

Test accuracy 0.9193 with seed 0, in 5 minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=128,
        duration="3 epochs",
        model=ModelConfig(
            name="resnext29_8x64d",
            options=ConfigDict({"depths": [1, 1, 1], "stem": "imagenet", "groups": 4, "width_per_group": 16}),
        ),
        data=DataConfig(name="fashion_mnist", image_size=56, mean=(0.286,), std=(0.353,)),
        augment=AugmentConfig(flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup="0.2 epochs"),
    )
