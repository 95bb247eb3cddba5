"""Wide ResNet 16-8 with dropout by the paper's recipe on SVHN.

    python -m flaxcnn prepare svhn_cropped
    python train.py --config=configs/svhn/wrn_16_8.py

Batch 128 for 160 epochs, for one GPU. It has not been run here.
Published: 1.54 % error, one run, the test split as it is (Zagoruyko, Komodakis 2016, and the README of their
code).

Nothing is known to differ: rate, dropout 0.4, drops and weight decay on all parameters are the released code's,
images are divided by 255 and not augmented, and "extra" is trained on besides "train".
--config.data.train_split=train leaves the 531,131 easier images of "extra" out.
"""

from ml_collections import ConfigDict

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    decay = 5e-4
    return TrainConfig(
        batch_size=128,
        duration="160 epochs",
        model=ModelConfig(
            name="wrn_40_4",
            options=ConfigDict({"depths": [2, 2, 2], "widths": [128, 256, 512], "dropout_rate": 0.4}),
        ),
        data=DataConfig(name="svhn_cropped", train_split="train+extra"),
        optimizer=OptimizerConfig(
            learning_rate=0.01,
            momentum=0.9,
            nesterov=True,
            weight_decay=decay,
            bias_weight_decay=decay,
            norm_weight_decay=decay,
        ),
        schedule=ScheduleConfig(name="multi_step", milestones=("80 epochs", "120 epochs"), factor=0.1),
    )
