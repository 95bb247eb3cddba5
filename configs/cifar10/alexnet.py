"""AlexNet on CIFAR-10 enlarged to 224 pixels, by the recipe of 2012.

    python -m flaxcnn prepare cifar10
    python train.py --config=configs/cifar10/alexnet.py

Batch 128 for 90 epochs, for one GPU. It has not been run here.
No published figure: the paper (Krizhevsky, Sutskever, Hinton 2012) trains it on ImageNet alone.

Batch, momentum, decay, rate and length are the paper's; the rate drops at fixed epochs instead of by hand. The
network is torchvision's single tower. Images are cropped and mirrored at 32 pixels and enlarged on the device
afterwards.
"""

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=128,
        duration="90 epochs",
        model=ModelConfig(name="alexnet"),
        data=DataConfig(
            name="cifar10", image_size=224, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
        ),
        augment=AugmentConfig(crop_padding=4, flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9, weight_decay=5e-4, bias_weight_decay=5e-4),
        schedule=ScheduleConfig(name="step", every="30 epochs", factor=0.1),
    )
