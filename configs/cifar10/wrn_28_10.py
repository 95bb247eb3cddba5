"""Wide ResNet 28-10 by the paper's recipe on CIFAR-10.

    python -m flaxcnn prepare cifar10
    python train.py --config=configs/cifar10/wrn_28_10.py

Batch 128 for 200 epochs, for one GPU. It has not been run here.
Published: 4.00 % error, the median of five runs, and 3.89 % with --config.model.options.dropout_rate=0.3
(Zagoruyko, Komodakis 2016, and the README of their code), the test split as it is.

Nothing is known to differ: weight decay applies to all parameters, and crops are padded with the mirrored edges,
as in the released code.
"""

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    decay = 5e-4
    return TrainConfig(
        batch_size=128,
        duration="200 epochs",
        model=ModelConfig(name="wrn_28_10"),
        data=DataConfig(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augment=AugmentConfig(crop_padding=4, crop_fill="reflect", flip="random"),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=decay,
            bias_weight_decay=decay,
            norm_weight_decay=decay,
        ),
        schedule=ScheduleConfig(
            name="multi_step", milestones=("60 epochs", "120 epochs", "160 epochs"), factor=0.2
        ),
    )
