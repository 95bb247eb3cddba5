"""Opening a dataset by its name: a prepared TFDS dataset, or a folder of images."""

import dataclasses

from flaxcnn.data.sources.folder import FOLDER, FolderSource, read_contents
from flaxcnn.data.sources.protocol import Source
from flaxcnn.data.sources.tfds import open_tfds, prepared_builder
from flaxcnn.errors import UserError
from flaxcnn.terminal import printable


def open_source(name: str, split: str, data_dir: str | None = None) -> Source:
    """Opens one split of a dataset. The dataset `digits` is prepared first if needed.

    Args:
      name: TFDS name, see `flaxcnn.data.tfds.builders.open_builder`; or "folder:PATH", see `FolderSource`.
      split: split or part of a split in TFDS's notation, such as "train" or "test[:1000]".
      data_dir: folder of prepared TFDS datasets; None for TFDS's default.

    Raises:
      UserError: the dataset is unknown or not prepared, its examples are not images with one label each, or the
        split is missing or empty.
    """
    if name.startswith(FOLDER):
        source = FolderSource.open(name, split)
    else:
        source = open_tfds(prepared_builder(name, data_dir), split)
    if not len(source):
        raise UserError(f"split {split!r} of data set {source.name} is empty")
    return source


def open_splits(name: str, data_dir: str | None = None) -> dict[str, Source]:
    """Opens all splits of a dataset that hold images. Images without a label (label -1) are allowed.

    Args:
      name: see `open_source`.
      data_dir: see `open_source`.

    Returns:
      {name of a split: source}.

    Raises:
      UserError: see `open_source`.
    """
    if name.startswith(FOLDER):
        contents = read_contents(name)
        sources = {split: FolderSource.of(name, split, contents, files) for split, files in contents.splits.items()}
    else:
        builder = prepared_builder(name, data_dir)
        sources = {
            split: dataclasses.replace(open_tfds(builder, split), unlabelled=True) for split in builder.info.splits
        }
    return {split: source for split, source in sources.items() if len(source)}


def refuse_data_dir(name: str, data_dir: str | None, flag: str) -> None:
    """Raises an error if a folder of prepared TFDS datasets is given for a dataset that is a folder of images.

    Args:
      name: name of the dataset.
      data_dir: folder of prepared TFDS datasets that the user has given, or None.
      flag: flag that sets `data_dir`, for the error message.

    Raises:
      UserError: `data_dir` is given, but would be ignored.
    """
    if data_dir and name.startswith(FOLDER):
        raise UserError(
            f"{flag} is where prepared sets lie, and {printable(name)} is read where it lies: leave out {flag}, "
            f"and write the whole path after {FOLDER}"
        )
