"""DenseNet with 40 layers and growth rate 12 by the paper's recipe on CIFAR-10.

    python -m flaxcnn prepare cifar10
    python train.py --config=configs/cifar10/densenet40_12.py

Batch 64 for 300 epochs, for one GPU. It has not been run here.
Published: 5.24 % error with crops and mirroring, the test split as it is (Huang et al. 2017, table 2).

Nothing is known to differ: the rate drops at a half and at three quarters of the run, weight decay applies to all
parameters and momentum is Nesterov's, as in the released code; there is no dropout, which the paper has only
without augmentation.
"""

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    decay = 1e-4
    return TrainConfig(
        batch_size=64,
        duration="300 epochs",
        model=ModelConfig(name="densenet40_12"),
        data=DataConfig(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augment=AugmentConfig(crop_padding=4, flip="random"),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=decay,
            bias_weight_decay=decay,
            norm_weight_decay=decay,
        ),
        schedule=ScheduleConfig(name="multi_step", milestones=("150 epochs", "225 epochs"), factor=0.1),
    )
