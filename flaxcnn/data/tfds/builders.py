"""Finding the builder of a TFDS dataset by its name.

Datasets are stored as array_record, which can be read without TensorFlow.
"""

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import constants, registered

from flaxcnn.data.tfds import digits  # noqa: F401 - registers `digits` with TFDS
from flaxcnn.errors import UserError, first_line, nearest
from flaxcnn.paths import local_path
from flaxcnn.terminal import printable

FILE_FORMAT = "array_record"


def open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a dataset, prepared or not.

    Args:
      name: TFDS name, with an optional config and version: "emnist/letters", "cifar10:3.0.2".
      data_dir: folder of prepared datasets; None for TFDS's default ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Raises:
      UserError: the dataset, config or version does not exist, the dataset is prepared in another format, or
        `data_dir` is an address such as gs://bucket.
    """
    folder = folder_of_sets(data_dir)
    try:
        with without_absl_warnings():
            return tfds.builder(name, data_dir=str(folder), file_format=FILE_FORMAT, try_gcs=False)
    except registered.DatasetNotFoundError:
        raise UserError(f"unknown data set {name!r}{_hint(name, data_dir)}") from None
    except (AssertionError, ValueError, OSError, ImportError) as error:
        if found := re.search(r"File format is already set to FileFormat\.(\w+)", str(error)):
            raise UserError(
                f"data set {name} is prepared as {found[1].lower()}, which only TensorFlow reads; prepare it into "
                f"another folder with --data-dir, and name that in data.data_dir"
            ) from None
        if hint := folder_hint(name):
            raise UserError(f"unknown data set {name!r}{hint}") from None
        reason = re.sub(r'^Failed to construct dataset .*?}": |\. Here are .*$', "", first_line(error, 300))
        raise UserError(f"cannot open data set {name!r}: {reason}") from None


def _hint(name: str, data_dir: str | None) -> str:
    """Returns a hint for an unknown name: "folder:PATH", how to make a resized dataset, or similar names."""
    if hint := folder_hint(name):
        return hint
    known = tfds.list_builders(with_community_datasets=False)
    prepared = [path.parents[1].name for path in folder_of_sets(data_dir).glob("*/*/dataset_info.json")]
    base = name.split("/")[0].split(":")[0]
    resized = re.fullmatch(r"(\w+)_(\d+)", base)
    if resized and resized[1] in known and not any(each.startswith(f"{resized[1]}_") for each in prepared):
        folder = f" --data-dir {data_dir}" if data_dir else ""
        return f"; to make it, run: python -m flaxcnn prepare {resized[1]} --resize {resized[2]}{folder}"
    return nearest(base, {*prepared, *known})


def folder_hint(name: str) -> str:
    """Returns a hint to write "folder:PATH" if a TFDS name is in fact a path; otherwise ""."""
    is_path = local_path(name).is_dir() or name.startswith(("/", "~", "./", "../"))
    return f"; a folder of images is written folder:{printable(name)}" if is_path else ""


def folder_of_sets(data_dir: str | None) -> Path:
    """Returns the folder of prepared datasets: `data_dir`, or TFDS's default for None."""
    return local_path(data_dir or constants.DATA_DIR)


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns whether a dataset is completely prepared."""
    with without_absl_warnings():
        return builder.is_prepared()


def supervised_keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """Returns the keys of the image and of the label in an example.

    Raises:
      UserError: the examples of the dataset are not images with one class label each.
    """
    keys, features = builder.info.supervised_keys, builder.info.features
    if (
        keys is None
        or len(keys) != 2
        or not isinstance(features[keys[0]], tfds.features.Image)
        or not isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise UserError(f"data set {builder.name} is not made of images with one class label each")
    return keys


@contextlib.contextmanager
def without_absl_warnings() -> Iterator[None]:
    """Context manager that suppresses TFDS's warnings about folders that are not prepared yet."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def has_tensorflow() -> bool:
    """Returns whether TensorFlow is installed, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None
