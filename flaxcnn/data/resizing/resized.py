"""Preparing a resized dataset: a copy of a TFDS dataset or a folder, with smaller images that decode faster."""

import contextlib
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from flaxcnn.data.resizing import workers as resize_workers
from flaxcnn.data.resizing.builder import ResizedBuilder, progress_bars
from flaxcnn.data.resizing.origin import origin_of, refuse_other_origin
from flaxcnn.data.sources.folder import FOLDER
from flaxcnn.data.sources.opening import open_splits
from flaxcnn.data.tfds.builders import folder_of_sets, open_builder, without_absl_warnings
from flaxcnn.data.tfds.cleanup import exclusive, removed_on_failure
from flaxcnn.data.tfds.preparation import prepare, quiet
from flaxcnn.errors import UserError, first_line


class Outcome(NamedTuple):
    """Result of `prepare_resized`.

    Attributes:
      builder: builder of the resized dataset.
      existed: whether the resized dataset was already prepared.
      left_out: one line per image that cannot be read, with the reason; empty if `existed`.
      notes: lines for the user, see `Source`; empty if `existed`.
    """

    builder: tfds.core.DatasetBuilder
    existed: bool
    left_out: list[str]
    notes: tuple[str, ...] = ()


def prepare_resized(
    name: str, data_dir: str | None = None, source: Path | None = None, *, side: int, bad_images: str = "stop"
) -> Outcome:
    """Writes a TFDS dataset NAME_SIDE with the images of a dataset or folder NAME, unless it is already prepared.

    Splits, order, labels and class names stay. Images become upright color JPEGs whose shorter side is `side`. They
    are scaled as in `crops.decode_center_square`, so an evaluation at that size differs only by the compression.
    Smaller images keep their size.

    Args:
      name: TFDS name of a dataset, which is prepared first if needed; or "folder:PATH".
      data_dir: folder of prepared TFDS datasets, for both the original and the result; None for TFDS's default.
      source: folder with downloaded files; see `preparation.prepare`.
      side: shorter side in pixels.
      bad_images: "stop" raises an error that names the first image that cannot be read; "skip" leaves such images
        out.

    Raises:
      UserError: see `preparation.prepare` and `open_source`; an image cannot be read; no image is larger than
        `side`; or a dataset of that name was made of another original. All written files are removed again.
    """
    origin = origin_of(name, side, data_dir)
    resized_name = f"{origin.name}_{side}"
    folder = folder_of_sets(data_dir) / resized_name
    refuse_other_origin(folder, origin)
    if (folder / origin.version).is_dir():
        builder = open_builder(f"{resized_name}:{origin.version}", data_dir)
        return Outcome(builder, existed=True, left_out=[])

    if not name.startswith(FOLDER):
        prepare(name, data_dir, source)
    splits = open_splits(name, None if name.startswith(FOLDER) else data_dir)
    first = next(iter(splits.values()))
    _refuse_padded_class_names(first.class_names)
    with contextlib.ExitStack() as stack:
        resized = ResizedBuilder(
            resized_name,
            side,
            origin,
            splits,
            data_dir=data_dir,
            skip=bad_images == "skip",
            pool=stack.enter_context(resize_workers.open_pool(splits)),
            progress=stack.enter_context(progress_bars()),
        )
        stack.enter_context(removed_on_failure(resized))
        stack.enter_context(exclusive(folder))
        stack.enter_context(without_absl_warnings())
        stack.enter_context(quiet())
        try:
            resized.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        except UserError:
            raise
        except BrokenProcessPool as error:
            raise UserError(
                "a process that resizes images was killed, which the system does when memory runs out"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:  # a full disk leads to any of these
            raise UserError(f"cannot write {resized_name} to {folder}: {first_line(error)}") from error
    builder = open_builder(f"{resized_name}:{origin.version}", data_dir)
    return Outcome(builder, existed=False, left_out=resized.left_out, notes=first.notes)


def _refuse_padded_class_names(class_names: Sequence[str]) -> None:
    """Raises `UserError` for a class name with spaces at its ends, because TFDS would strip them."""
    for name in class_names:
        if name != name.strip():
            raise UserError(f"a data set cannot store the class name {name!r}; rename its folder")
