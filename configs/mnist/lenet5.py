"""LeNet-5 on MNIST, with ReLU and max pooling.

    python -m flaxcnn prepare mnist
    python train.py --config=configs/mnist/lenet5.py

This recipe has not been run: MNIST could not be downloaded where it was written.
"""

from ml_collections import ConfigDict

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=128,
        duration="10 epochs",
        model=ModelConfig(name="lenet5", options=ConfigDict({"activation": "relu", "pooling": "max"})),
        data=DataConfig(name="mnist", mean=(0.1307,), std=(0.3081,)),
        optimizer=OptimizerConfig(learning_rate=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup="1 epochs"),
    )
