"""Setup of a run: checks the configuration, the data and the work directory, and builds the network."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxcnn.config import TrainConfig
from flaxcnn.config.changes import Change
from flaxcnn.config.geometry import EvaluationGeometry
from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.sources.opening import open_source, refuse_data_dir
from flaxcnn.errors import UserError
from flaxcnn.parallel.processes import assert_equal_across_processes, raise_on_all_processes
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.paths import local_path
from flaxcnn.runs import workdir as workdir_lib
from flaxcnn.training.evaluation import evaluation_batch_size
from flaxcnn.training.experiment import Experiment, check_config, make_experiment
from flaxcnn.training.plan import Plan


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with checked configuration, data and work directory, before anything is decoded, compiled or written.

    Attributes:
      experiment: configuration, network, preprocessing and augmentation.
      datasets: datasets of the splits, "train" and "test".
      plan: when to log, evaluate and save; placement on the devices.
      workdir: folder of the run.
      data_record: class names, image shape and fingerprint of the data, as recorded in the work directory.
      changes: differences between the configuration and the one that is recorded in the work directory.
    """

    experiment: Experiment
    datasets: Mapping[str, ImageDataset]
    plan: Plan
    workdir: Path
    data_record: Mapping[str, Any]
    changes: list[Change]

    @property
    def config(self) -> TrainConfig:
        """The configuration of the run."""
        return self.experiment.config

    @property
    def strategy(self) -> Strategy:
        """Placement of arrays and programs on the devices."""
        return self.plan.strategy

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Global batch size for each split, "train" and "test"."""
        test = evaluation_batch_size(self.config, len(self.datasets["test"]), self.strategy)
        return {"train": self.config.batch_size, "test": test}


def setup(config: TrainConfig, workdir: str | Path) -> Run:
    """Checks a configuration, opens its data, and builds the network and the plan of a run.

    With several processes, each process calls it; if one raises, all raise.

    Args:
      config: the configuration.
      workdir: folder of the run, which need not exist yet.

    Raises:
      UserError: the configuration is invalid, the data is missing, or the folder holds another experiment.
    """
    with raise_on_all_processes():
        workdir = local_path(workdir)
        check_config(config)
        refuse_data_dir(config.data.name, config.data.data_dir, "--config.data.data_dir")
        datasets = {
            "train": open_dataset(config, config.data.train_split, training=True),
            "test": open_dataset(config, config.data.test_split, training=False),
        }
        train, test = datasets["train"], datasets["test"]
        record = {
            "class_names": train.source.class_names,
            "image_shape": test.image_shape,
            "fingerprint": train.source.fingerprint,
        }
        changes = workdir_lib.check_usable(workdir, config, record)
        experiment = make_experiment(config, train.source.class_names, test.image_shape)
        plan = Plan(config, len(train), Strategy(config.parallel.strategy))
    assert_equal_across_processes("the images", record["fingerprint"] + test.source.fingerprint)
    return Run(experiment, datasets, plan, workdir, record, changes)


def open_dataset(config: TrainConfig, split: str, *, training: bool) -> ImageDataset:
    """Opens a split of the configured dataset.

    Args:
      config: the configuration.
      split: name of the split.
      training: whether images are decoded for training (with random crops, if configured) or for evaluation.

    Raises:
      UserError: the split is missing, or does not fit the configuration.
    """
    data = config.data
    source = open_source(data.name, split, data.data_dir)
    height, width, channels = source.image_shape
    if channels not in (1, 3):
        raise UserError(f"the images of {source.name} have {channels} channels; gray (1) and RGB (3) can be read")
    scaled_on_host = height is None or width is None or (training and data.crop != "center")
    if scaled_on_host and data.resize != "bilinear":
        raise UserError(
            f"data.resize is {data.resize!r}, which is for images that are scaled on the device; those of "
            f"{source.name} are scaled as they are decoded, and that is bilinear"
        )
    if training and data.crop != "center":
        size = data.image_size or 0  # validated: a random crop has a size
        return ImageDataset(
            source,
            (size, size, channels),
            crop=data.crop,
            seed=config.seed,
            crop_area=(data.crop_area[0], data.crop_area[1]),
            crop_ratio=(data.crop_ratio[0], data.crop_ratio[1]),
            shorter_side=(data.shorter_side[0], data.shorter_side[-1]) if data.shorter_side else (0, 0),
        )
    if height is not None and width is not None:
        return ImageDataset(source, (height, width, channels))
    size = data.image_size if training else EvaluationGeometry.of(data, config.evaluation).decode_size
    if size is None:
        raise UserError(f"the images of {source.name} differ in size; set data.image_size, such as 64")
    return ImageDataset(source, (size, size, channels), crop="center")
