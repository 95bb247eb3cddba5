"""LeNet-5 as published in 1998 on MNIST, for the paper's 20 passes and with its schedule.

    python -m flaxcnn prepare mnist
    python train.py --config=configs/mnist/lenet5_1998.py

The paper reports 0.95 % test error without distortions, an accuracy of 0.9905 (LeCun et al. 1998, section III.B).
This recipe has not been run: MNIST could not be downloaded where it was written.

Images are centered on 32x32 and scaled to -0.1 (paper) and 1.175 (ink), as in the paper. It trains by the
stochastic diagonal Levenberg-Marquardt method, one example at a time; here it is plain SGD in batches of 16, whose
rate drops at the same passes (after 2, 5, 8 and 12) but evenly, by 0.45 each time: the paper's rates are 5, 2, 1,
0.5 and 0.1.
"""

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=16,
        duration="20 epochs",
        model=ModelConfig(name="lenet5_1998"),
        data=DataConfig(name="mnist", image_size=32, resize="pad", mean=(0.1 / 1.275,), std=(1 / 1.275,)),
        optimizer=OptimizerConfig(learning_rate=0.005, momentum=0.0),
        schedule=ScheduleConfig(
            name="multi_step", milestones=("2 epochs", "5 epochs", "8 epochs", "12 epochs"), factor=0.45
        ),
    )
