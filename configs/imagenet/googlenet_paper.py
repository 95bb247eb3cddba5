"""GoogLeNet as published, with both auxiliary heads and averaged parameters, on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/googlenet_paper.py

Batch 32 for 250 epochs, for one GPU (theirs: asynchronous, on many CPUs). It has not been run here.
Published: 10.07 % top-5 error, one crop of 224 from 256 pixels (Szegedy et al. 2015, table 3), for the averaged
parameters; 68.7 / 88.9 % top-1 / top-5 for Caffe's replication, trained for 60 epochs.

From the paper: momentum, a rate that drops by 4 % every 8 epochs, auxiliary losses times 0.3, crops of 8 to 100 %
of the area with a ratio of 3/4 to 4/3, Polyak averaging. What it does not state is chosen: batch, rate 0.01, decay
and length are those of Caffe's replication, whose pixels are on the scale of 0 to 255 too; the average has a decay
of 0.9999 per step, and the "photometric distortions" are brightness, contrast and saturation by a half, and
lighting, as in Howard 2013. What differs: one process instead of asynchronous ones, one method of resizing instead
of several at random; biases do not decay, as in Caffe, but learn at the rate of the weights and not at twice that.
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
        duration="250 epochs",
        model=ModelConfig(name="googlenet_paper", options=ConfigDict({"aux_logits": True})),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random_resized",
            crop_area=(0.08, 1.0),
            crop_ratio=(3 / 4, 4 / 3),
            mean=(0.485, 0.456, 0.406),
            std=(1 / 255,),
        ),
        augment=AugmentConfig(flip="random", color_jitter=(0.5, 0.5, 0.5, 0.0), lighting=0.1),
        optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9, weight_decay=2e-4, ema_decay=0.9999),
        schedule=ScheduleConfig(name="step", every="8 epochs", factor=0.96),
        evaluation=EvaluationConfig(shorter_side=256),
    )
