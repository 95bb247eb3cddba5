"""The single-tower AlexNet of "One weird trick", by torchvision's recipe, on ImageNet.

    python -m flaxcnn prepare imagenet2012 --from FOLDER  # with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python train.py --config=configs/imagenet/alexnet.py

Batch 256 for 90 epochs, for one GPU or TPU core (theirs: 8 GPUs with 32 images each). It has not been run here.
Published: 56.522 / 79.066 % top-1 / top-5, one crop of 224 from 256 pixels (torchvision's IMAGENET1K_V1).

Nothing is known to differ from torchvision's references/classification with `--model alexnet --lr 1e-2`; the paper
itself (Krizhevsky 2014) is on sharing a batch between GPUs.
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
        batch_size=256,
        duration="90 epochs",
        model=ModelConfig(name="alexnet"),
        data=DataConfig(
            name="imagenet2012",
            test_split="validation",
            image_size=224,
            crop="random_resized",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9, weight_decay=1e-4, bias_weight_decay=1e-4),
        schedule=ScheduleConfig(name="step", every="30 epochs", factor=0.1),
        evaluation=EvaluationConfig(shorter_side=256),
    )
