"""Network in Network on CIFAR-100, with the paper's dropout.

    python -m flaxcnn prepare cifar100
    python train.py --config=configs/cifar100/nin_cifar.py

Batch 128 for 120,000 steps, for one GPU. It has not been run here.
Published: 35.68 % error without augmentation, the test split as it is (Lin, Chen, Yan 2014, table 2).

Rate and decay are those of the authors' released files for CIFAR-100: 0.01 and 0.001 with the loss doubled, which
is 0.02 and 5e-4. The steps are those of their Caffe version for CIFAR-10; the paper lowers the rate by hand, to a
tenth and a hundredth. What differs: pixels are normalized per channel, not by global contrast and ZCA whitening,
for which there is no option; and biases learn at the rate of the weights and not at twice that.
"""

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=128,
        duration="120000 steps",
        model=ModelConfig(name="nin_cifar"),
        data=DataConfig(name="cifar100", mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
        optimizer=OptimizerConfig(learning_rate=0.02, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="multi_step", milestones=("100000 steps", "110000 steps"), factor=0.1),
    )
