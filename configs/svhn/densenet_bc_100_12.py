"""DenseNet-BC with 100 layers and growth rate 12, with dropout, by the paper's recipe on SVHN.

    python -m flaxcnn prepare svhn_cropped
    python train.py --config=configs/svhn/densenet_bc_100_12.py

Batch 64 for 40 epochs, for one GPU. It has not been run here.
Published: 1.76 % error, the test split as it is (Huang et al. 2017, table 2).

Nothing is known to differ but the epoch that is evaluated: the paper's is the one with the lowest error on 6,000
held-out images, which this recipe trains on; ours is the last. Images are divided by 255 and not augmented.
--config.data.train_split=train leaves the 531,131 easier images of "extra" out.
"""

from ml_collections import ConfigDict

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    decay = 1e-4
    return TrainConfig(
        batch_size=64,
        duration="40 epochs",
        model=ModelConfig(name="densenet_bc_100_12", options=ConfigDict({"dropout_rate": 0.2})),
        data=DataConfig(name="svhn_cropped", train_split="train+extra"),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=decay,
            bias_weight_decay=decay,
            norm_weight_decay=decay,
        ),
        schedule=ScheduleConfig(name="multi_step", milestones=("20 epochs", "30 epochs"), factor=0.1),
    )
