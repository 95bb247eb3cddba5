"""ResNeXt-29 with 8 groups of 64 channels by its authors' recipe on CIFAR-10.

    python -m flaxcnn prepare cifar10
    python train.py --config=configs/cifar10/resnext29_8x64d.py

Batch 128 for 300 epochs, for one large GPU or a node of 8 (theirs: 8 GPUs with 16 images each). It has not been
run here.
Published: 3.65 % error, the mean of ten runs, the test split as it is (Xie et al. 2017, table 7).

Batch, decay and Nesterov's momentum are those of the released code, with whose batch of 128 and blocks that end in
a ReLU its authors report better accuracies than with the paper's 256 and pre-activation. What differs: BatchNorm
sees the whole batch, not one GPU's 16 images; --config.parallel.batch_norm=local changes that on 8 GPUs.
"""

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    decay = 5e-4
    return TrainConfig(
        batch_size=128,
        duration="300 epochs",
        model=ModelConfig(name="resnext29_8x64d"),
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
