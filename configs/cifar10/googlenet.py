"""GoogLeNet with BatchNorm on CIFAR-10 enlarged to 96 pixels.

    python -m flaxcnn prepare cifar10
    python train.py --config=configs/cifar10/googlenet.py

Batch 128 for 200 epochs, for one GPU. It has not been run here.
No published figure: the paper (Szegedy et al. 2015) trains it on ImageNet alone.

The recipe is the one that pytorch-cifar trains all its networks by. The whole network is kept, stem included;
images of 32 pixels would shrink to a single one before the last modules, so they are enlarged on the device, as in
d2l.ai.
"""

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=128,
        duration="200 epochs",
        model=ModelConfig(name="googlenet"),
        data=DataConfig(name="cifar10", image_size=96, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augment=AugmentConfig(crop_padding=4, flip="random"),
        optimizer=OptimizerConfig(
            learning_rate=0.1, momentum=0.9, weight_decay=5e-4, bias_weight_decay=5e-4, norm_weight_decay=5e-4
        ),
        schedule=ScheduleConfig(name="cosine"),
    )
