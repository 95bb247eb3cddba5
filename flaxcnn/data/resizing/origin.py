"""The original of a resized dataset: a TFDS dataset or a folder of images."""

import dataclasses
import json
import os
import re
from pathlib import Path

import tensorflow_datasets as tfds

from flaxcnn.data.sources.folder import FOLDER
from flaxcnn.data.tfds.builders import open_builder, supervised_keys
from flaxcnn.errors import UserError
from flaxcnn.paths import local_path


@dataclasses.dataclass(frozen=True)
class Origin:
    """The original of a resized dataset, and the name and version of the resized dataset.

    Attributes:
      description: text that identifies the original; it is stored in the resized dataset.
      name: name of the resized dataset, without its side at the end.
      version: version of the resized dataset.
      image_shape: (height, width, channels) of the original images; height and width are None if the images differ
        in size.
    """

    description: str
    name: str
    version: str
    image_shape: tuple[int | None, int | None, int]


def origin_of(name: str, side: int, data_dir: str | None) -> Origin:
    """Returns a description of the original of a resized dataset.

    Args:
      name: name of the original: a TFDS name, or "folder:PATH".
      side: shorter side of the resized images, in pixels.
      data_dir: folder of prepared TFDS datasets; None for TFDS's default.

    Raises:
      UserError: see `open_builder`; no image is larger than `side`; or TFDS already has a dataset with the name of
        the resized dataset.
    """
    return _folder_origin(name, side) if name.startswith(FOLDER) else _tfds_origin(name, side, data_dir)


def _tfds_origin(name: str, side: int, data_dir: str | None) -> Origin:
    """Describes a TFDS dataset. Its config becomes a part of the name, and its version is kept."""
    builder = open_builder(name, data_dir)
    image_key, _ = supervised_keys(builder)
    height, width, _ = shape = builder.info.features[image_key].shape
    if height and width and min(height, width) <= side:
        raise UserError(f"the images of {name} have {width}x{height} pixels: there is nothing to resize to {side}")
    config = builder.builder_config.name if builder.builder_config else ""
    description = "/".join(filter(None, [builder.name, config]))
    return Origin(description, _identifier(description), str(builder.version), shape)


def _folder_origin(name: str, side: int) -> Origin:
    path = os.path.abspath(local_path(name.removeprefix(FOLDER)))  # noqa: PTH100 - keeps links
    identifier = _identifier(Path(path).name)
    if f"{identifier}_{side}" in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"{identifier}_{side} is a data set of TFDS's own; give the folder {path} another name")
    printable = os.fsencode(path).decode(errors="backslashreplace")
    return Origin(f"{FOLDER}{printable}", identifier, "1.0.0", (None, None, 3))


def _identifier(text: str) -> str:
    """Converts a text to a dataset name that TFDS accepts."""
    found = re.sub(r"[\W_]+", "_", text, flags=re.ASCII).strip("_").lower()
    return found if found[:1].isalpha() else f"pictures_{found}".rstrip("_")


def refuse_other_origin(folder: Path, origin: Origin) -> None:
    """Checks that all existing versions of a resized dataset have the same original.

    All versions are checked, because TFDS opens the newest one.

    Args:
      folder: folder of the resized dataset, with a folder for each version.
      origin: the expected original.

    Raises:
      UserError: a version was made of another original.
    """
    for info in sorted(folder.glob("*/dataset_info.json")):
        metadata = info.with_name("metadata.json")
        found = json.loads(metadata.read_text()).get("made_of") if metadata.exists() else "something else"
        if found != origin.description:
            raise UserError(
                f"{info.parent} was made of {found}, not of {origin.description}; name another folder with "
                f"--data-dir"
            )
