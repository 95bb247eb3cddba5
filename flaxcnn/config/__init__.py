"""The configuration of a run: nested dataclasses, whose leaves are single values such as `optimizer.momentum`.

    schema         the dataclasses: default, meaning and allowed values of each leaf
    durations      parsing durations such as "10 epochs" and "400 steps"
    geometry       image sizes in evaluation
    leaves         the leaves and their dotted paths
    serialization  conversion to plain dictionaries and back
    changes        differences between two configurations
    validation     checks of all leaves, with one-line messages
    recipes        finding and loading the files that describe runs

A recipe is a Python file whose `get_config()` returns a `TrainConfig`:

    from flaxcnn.config import DataConfig, ModelConfig, TrainConfig

    def get_config():
        return TrainConfig(model=ModelConfig(name="resnet18"), data=DataConfig(name="cifar10"))
"""

from flaxcnn.config.durations import to_steps
from flaxcnn.config.recipes import load_config
from flaxcnn.config.schema import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
)
from flaxcnn.config.serialization import from_dict, to_dict
from flaxcnn.config.validation import validate

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ScheduleConfig",
    "TrainConfig",
    "from_dict",
    "load_config",
    "to_dict",
    "to_steps",
    "validate",
]
