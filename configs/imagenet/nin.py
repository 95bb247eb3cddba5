"""Network in Network with four blocks, the network that its authors released for Caffe, on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/nin.py

Batch 64 for 450,000 steps, for one GPU (theirs: 4 to 5 days on a GTX Titan). It has not been run here.
Published: 59.36 % top-1, one crop of 224 from 256 pixels (the model card of nin_imagenet, by the paper's first
author; the paper, Lin, Chen, Yan 2014, has no figure for ImageNet).

Rates, decay and steps are those of the released solver; its pixels too are on the scale of 0 to 255. What differs:
its images are squeezed to 256x256, ours are cropped; its biases learn at twice the rate, for which there is no
option; and the weights are initialized by Glorot's rule, not from normal distributions whose standard deviations
were chosen layer by layer.
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
        batch_size=64,
        duration="450000 steps",
        model=ModelConfig(name="nin", options=ConfigDict({"head_features": 1024, "ceil_mode": True})),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random",
            shorter_side=(256,),
            mean=(0.485, 0.456, 0.406),
            std=(1 / 255,),
        ),
        augment=AugmentConfig(flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="step", every="200000 steps", factor=0.1),
        evaluation=EvaluationConfig(shorter_side=256),
    )
