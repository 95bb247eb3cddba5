"""Opening the images that a trained network is applied to, at the size it was trained on."""

import sys
from collections.abc import Sequence
from pathlib import Path

from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.sources import folder, opening
from flaxcnn.data.sources.folder import FOLDER
from flaxcnn.data.sources.protocol import Source
from flaxcnn.data.sources.relabelling import relabel
from flaxcnn.errors import UserError
from flaxcnn.parallel.processes import is_primary
from flaxcnn.paths import local_path
from flaxcnn.runs.workdir import read_run
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.setup import open_dataset

_TEST_SPLITS = ("test", "testing", "val", "valid", "validation")


def open_data(experiment: Experiment, split: str | None = None) -> ImageDataset:
    """Opens a split of the dataset that a network was trained on; by default the test split of the run.

    Raises:
      UserError: the dataset or split is missing, or its classes or image sizes have changed.
    """
    config = experiment.config
    name = config.data.name
    if name.startswith(FOLDER) and not local_path(name.removeprefix(FOLDER)).is_dir():
        raise UserError(f"the data of the run is no longer in {name}; --data folder:PATH names where it lies now")
    dataset = open_dataset(config, split or config.data.test_split, training=False)
    source = dataset.source
    _print_notes(source)
    if source.class_names != experiment.class_names or dataset.image_shape != experiment.image_shape:
        raise UserError(
            f"data set {source.name} has other classes or sizes than the one that was trained on; --data {name} "
            f"evaluates it as another data set"
        )
    return dataset


def _print_notes(source: Source) -> None:
    """Prints the notes of a source to stderr, such as files of a folder that are left out."""
    for note in source.notes if is_primary() else ():
        print(note, file=sys.stderr)


def open_other_data(experiment: Experiment, name: str, split: str | None = None, *, workdir: Path) -> ImageDataset:
    """Opens a split of another dataset; labels are mapped to the trained classes by class name.

    Images are scaled and cropped to the trained shape as in `open_files`. If `split` is None, the split is:
      - for a folder without splits: the test split of the run if the images are those of the run, otherwise all
        images;
      - for other datasets: the split with the name of the run's test split, or with a usual name such as "test" or
        "validation".

    Args:
      experiment: the trained experiment; its configuration names the folder of prepared datasets.
      name: name of the dataset, see `flaxcnn.data.sources.opening.open_source`.
      split: name of the split to open, or None.
      workdir: folder of the run.

    Raises:
      UserError: the dataset or split is missing, or the dataset has a class that the network was not trained on.
    """
    data_dir = None if name.startswith(FOLDER) else experiment.config.data.data_dir
    source = _open_split(experiment, name, split, data_dir, workdir)
    _print_notes(source)
    return _in_shape(experiment, relabel(source, experiment.class_names))


def open_files(experiment: Experiment, paths: Sequence[str | Path]) -> ImageDataset:
    """Opens image files, and all images in folders, as a dataset of images of the trained shape.

    Each image is converted to gray or RGB and turned upright. Its shorter side is scaled to the longer side of the
    trained shape, and its center is cropped.

    Raises:
      UserError: a file does not exist, or a folder holds no images.
    """
    return _in_shape(experiment, folder.open_files(paths))


def _in_shape(experiment: Experiment, source: Source) -> ImageDataset:
    stored = source.image_shape == experiment.image_shape
    return ImageDataset(source, experiment.image_shape, crop="stored" if stored else "center")


def _open_split(
    experiment: Experiment, name: str, split: str | None, data_dir: str | None, workdir: Path
) -> Source:
    data = experiment.config.data
    if split is not None:
        return opening.open_source(name, split, data_dir)
    splits = opening.open_splits(name, data_dir)
    if name.startswith(FOLDER) and folder.is_flat(name):
        trained_on = read_run(workdir)["data"].get("fingerprint")
        is_the_runs = _fingerprint(name, data.train_split) == trained_on
        return opening.open_source(name, data.test_split if is_the_runs else "all")
    bases = [part.strip().partition("[")[0] for part in data.test_split.split("+")]
    if all(base in splits or base == "all" for base in bases):
        return opening.open_source(name, data.test_split, data_dir)
    usual = [each for each in _TEST_SPLITS if each in splits] or (list(splits) if len(splits) == 1 else [])
    if not usual:
        raise UserError(f"name a split of {name} with --split; it has {', '.join(splits)}")
    return opening.open_source(name, usual[0], data_dir)


def _fingerprint(name: str, split: str) -> str | None:
    try:
        return opening.open_source(name, split).fingerprint
    except UserError:  # there is no such split
        return None
