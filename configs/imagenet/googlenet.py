"""torchvision's GoogLeNet, which has BatchNorm, by the recipe of the paper on BatchNorm (its BN-x30), on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/googlenet.py

Batch 32 for 6,000,000 steps, for one GPU (theirs: asynchronous, 50 batches at a time). It has not been run here.
Published: 74.8 % top-1 for BN-x30, one crop (Ioffe, Szegedy 2015, figure 3), a wider network of 13.6 million
parameters against 6.6 million here; torchvision's own weights, 69.778 / 89.530 %, were ported and not trained by
it.

From the paper: rate 0.045, no dropout, the weight decay of Inception (Caffe's 2e-4) divided by five, a rate that
drops by 4 % six times as often as Inception's, that is every 8 / 6 epochs, and 6 million steps, after which it is
a hundredth of what it was. What differs: the network, which has no second 3x3 convolution in the branch of the
5x5; one process instead of asynchronous ones; the momentum, of which the paper gives no value, is Inception's;
biases and BatchNorm do not decay.
"""

from ml_collections import ConfigDict

from flaxcnn.config import (
    AugmentConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        batch_size=32,
        duration="6000000 steps",
        model=ModelConfig(name="googlenet", options=ConfigDict({"dropout_rate": 0.0})),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random_resized",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.045, momentum=0.9, weight_decay=4e-5),
        schedule=ScheduleConfig(name="step", every="1.3333 epochs", factor=0.96),
        evaluation=EvaluationConfig(shorter_side=256),
    )
