"""LeNet-5 with BatchNorm on Fashion-MNIST: after every layer, before its sigmoid.

    python -m flaxcnn prepare fashion_mnist
    python train.py --config=configs/fashion_mnist/lenet5_batch_norm.py

Test accuracy 0.8910 with seed 0, in 22 seconds on 2 CPU cores.
"""

from ml_collections import ConfigDict

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=128,
        duration="5 epochs",
        model=ModelConfig(name="lenet5", options=ConfigDict({"norm": "batch_norm"})),
        data=DataConfig(name="fashion_mnist", mean=(0.286,), std=(0.353,)),
        augment=AugmentConfig(flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup="0.5 epochs"),
    )
