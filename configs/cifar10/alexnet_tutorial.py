"""AlexNet on CIFAR-10 enlarged to 224 pixels, as it is taught: a small rate, four images at a time.

    python -m flaxcnn prepare cifar10
    python train.py --config=configs/cifar10/alexnet_tutorial.py

Batch 4 for 7 epochs, for one GPU. It has not been run here.
Published: 50.1 % after the first epoch and 81.5 % after the seventh, on whole images of the test split. These are
the figures of the classic tutorial, whose text was not at hand.

Rate, momentum, batch and length are the tutorial's. Which AlexNet it trains and how it normalizes is not known;
this is torchvision's network from scratch, with ImageNet's mean and standard deviation. Images are enlarged
bilinearly on the device, so the dataset stays there at its stored size.
"""

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=4,
        duration="7 epochs",
        model=ModelConfig(name="alexnet"),
        data=DataConfig(name="cifar10", image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        optimizer=OptimizerConfig(learning_rate=0.001, momentum=0.9),
        schedule=ScheduleConfig(name="constant"),
    )
