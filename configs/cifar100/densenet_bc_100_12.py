"""DenseNet-BC with 100 layers and growth rate 12 by the paper's recipe on CIFAR-100.

    python -m flaxcnn prepare cifar100
    python train.py --config=configs/cifar100/densenet_bc_100_12.py

Batch 64 for 300 epochs, for one GPU. It has not been run here.
Published: 22.27 % error with crops and mirroring, the test split as it is (Huang et al. 2017, table 2).

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
        model=ModelConfig(name="densenet_bc_100_12"),
        data=DataConfig(name="cifar100", mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
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
