"""AlexNet as published in 2012, two towers and local response normalization, on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/alexnet_2012.py

Batch 128 for 90 epochs, for one GPU or TPU core (theirs: two GPUs of 3 GB). It has not been run here.
Published: 40.7 / 18.2 % top-1 / top-5 error on the validation set, the mean softmax of ten crops of 224 from 256
pixels (Krizhevsky, Sutskever, Hinton 2012, table 2, one network).

What differs: the paper's velocity includes the learning rate, ours does not, so after each drop the old velocity
moves the weights a tenth as far for some steps. The rate was divided by ten by hand, three times, when the
validation error stopped improving; here after five evaluations without a better one. Training crops come from the
whole image, not from its central square, and the mean is one value per channel, not an image. Pixels are on the
paper's scale of 0 to 255. Caffe's authors found that biases that start at 1 do not train; if the loss stays at
6.9, --config.model.options.paper_initialization=False starts from torch's distributions, for which data.std is
(0.229, 0.224, 0.225).
"""

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
        batch_size=128,
        duration="90 epochs",
        model=ModelConfig(name="alexnet_2012"),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random",
            shorter_side=(256,),
            mean=(0.485, 0.456, 0.406),
            std=(1 / 255,),
        ),
        augment=AugmentConfig(flip="random", lighting=0.1),
        optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9, weight_decay=5e-4, bias_weight_decay=5e-4),
        schedule=ScheduleConfig(name="plateau", patience=5, factor=0.1),
        evaluation=EvaluationConfig(shorter_side=256, views="ten_crop", batch_size=64),
    )
