"""ResNet-18 from scratch on a folder that holds a folder of images for each class, such as pets/cat/1.jpg.

    python train.py --config=configs/folder.py --config.data.name=folder:pets

A fifth of each class is kept for testing, unless the folder has splits of its own: pets/train/cat/1.jpg and
pets/test/cat/1.jpg. The recipe suits a few hundred images and one device: 20 epochs at 96x96 pixels, batches of
16. With more images a larger size pays: --config.data.image_size=224 --config.evaluation.shorter_side=256. The
accuracy depends on the images.
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
        batch_size=16,
        duration="20 epochs",
        model=ModelConfig(name="resnet18"),
        data=DataConfig(
            name="folder:PATH",
            image_size=96,
            crop="random_resized",
            crop_area=(0.35, 1.0),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.02, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup="1 epochs"),
        evaluation=EvaluationConfig(shorter_side=112),
    )
