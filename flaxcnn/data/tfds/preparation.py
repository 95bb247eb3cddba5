"""Downloading and preparing a TFDS dataset."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from flaxcnn.data.tfds import staged_files
from flaxcnn.data.tfds.builders import FILE_FORMAT, has_tensorflow, is_prepared, open_builder, without_absl_warnings
from flaxcnn.data.tfds.cleanup import removed_on_failure
from flaxcnn.data.tfds.digits import Digits
from flaxcnn.errors import UserError, first_line


def prepare(name: str, data_dir: str | None = None, source: Path | None = None) -> tfds.core.DatasetBuilder:
    """Downloads and prepares a dataset, unless it is already prepared.

    Args:
      name: TFDS name; see `open_builder`.
      data_dir: folder of prepared datasets; see `open_builder`.
      source: folder with files that the user has downloaded, so that they are not downloaded again. Each file is
        matched to one of the builder's URLs by its name, and checked against TFDS's checksum. For a dataset that
        TFDS cannot download, it is the folder that TFDS reads (`manual_dir`).

    Returns:
      The builder of the prepared dataset.

    Raises:
      UserError: see `open_builder`; a file has the wrong checksum; files are missing and there is no network; or
        the builder needs TensorFlow, which is missing. All written files are removed again.
    """
    builder = open_builder(name, data_dir)
    staged = staged_files.match(builder, source) if source else {}
    if is_prepared(builder):
        return builder
    if builder.url_infos and not has_tensorflow():
        raise UserError(f"preparing {name} needs TensorFlow: pip install -e '.[prepare]'")

    is_small = isinstance(builder, Digits)
    with removed_on_failure(builder):
        staged_files.stage(builder, staged)
        manual = source if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else None
        config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        try:
            with without_absl_warnings(), _few_retries(), quiet() if is_small else contextlib.nullcontext():
                builder.download_and_prepare(download_config=config, file_format=FILE_FORMAT)
        except ImportError as error:
            raise UserError(f"preparing {name} needs {error.name}: pip install -e '.[prepare]'") from error
        except requests.RequestException as error:
            url = error.request.url if error.request is not None else "a file"
            raise UserError(
                f"cannot download {url}: no connection; put the files of {name} into a folder "
                f"({', '.join(sorted(staged_files.file_names(builder).values()))}) and name it with --from"
            ) from error
        except (OSError, AssertionError, tfds.download.DownloadError) as error:
            if not is_prepared(open_builder(name, data_dir)):  # unless another process has prepared it meanwhile
                raise UserError(f"cannot prepare {name}: {first_line(error, 300)}") from error
    return open_builder(name, data_dir)  # a new builder, because a builder reads its splits when it is created


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Context manager in which TFDS gives up on an unreachable host after seconds instead of over three minutes."""
    urllib3 = logging.getLogger("urllib3")
    before, level = downloader.MAX_RETRIES, urllib3.level
    downloader.MAX_RETRIES = 4
    urllib3.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before
        urllib3.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context manager that suppresses the messages and progress bars of TFDS."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
