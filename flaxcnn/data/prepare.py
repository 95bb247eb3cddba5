"""From a name to a prepared TFDS data set, stored as array_record so that it is read without TensorFlow."""

import contextlib
import importlib.util
import io
import re
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import requests
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import checksums, downloader, resource

from flaxcnn.data import digits
from flaxcnn.errors import UserError, nearest

FILE_FORMAT = "array_record"


def open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a data set, prepared or not.

    Args:
      name: TFDS name, with an optional config and version: "emnist/letters", "cifar10:3.0.2".
      data_dir: folder of prepared sets; None for TFDS's own ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Raises:
      UserError: no such data set, config or version, or prepared in another format.
    """
    try:
        with _without_absl_warnings():
            return tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT, try_gcs=False)
    except registered.DatasetNotFoundError:
        base = name.split("/")[0].split(":")[0]
        hint = nearest(base, tfds.list_builders(with_community_datasets=False))
        raise UserError(f"unknown data set {name!r}{hint}") from None
    except (AssertionError, ValueError) as error:
        if found := re.search(r"File format is already set to FileFormat\.(\w+)", str(error)):
            raise UserError(
                f"data set {name} is prepared as {found[1].lower()}, which only TensorFlow reads; prepare it into "
                f"another folder with --data-dir, and name that in data.data_dir"
            ) from None
        reason = re.sub(r'^Failed to construct dataset .*?}": |\. Here are .*$', "", _first_line(error))
        raise UserError(f"cannot open data set {name!r}: {reason}") from None


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns whether the data set lies on disk, complete."""
    with _without_absl_warnings():
        return builder.is_prepared()


def has_tensorflow() -> bool:
    """Returns whether TensorFlow is installed, without loading it."""
    return importlib.util.find_spec("tensorflow") is not None


def prepare(name: str, data_dir: str | None = None, source: Path | None = None) -> tfds.core.DatasetBuilder:
    """Downloads and prepares a data set, unless it is prepared already.

    Args:
      name: see `open_builder`.
      data_dir: see `open_builder`.
      source: folder that already holds the files to download. Each is matched to the builder's URLs by its
        name and checked against TFDS's own checksum; sets whose files TFDS cannot download itself are read from it.

    Returns:
      The builder, prepared.

    Raises:
      UserError: see `open_builder`; a file that differs from its checksum; files missing and no network;
        TensorFlow missing where the builder needs it. What the attempt wrote is removed again.
    """
    builder = open_builder(name, data_dir)
    staged = _match(builder, source) if source else {}
    if is_prepared(builder):
        return builder
    if builder.url_infos and not has_tensorflow():
        raise UserError(f"preparing {name} needs TensorFlow: pip install 'flaxcnn[prepare]'")

    root = Path(builder.data_dir_root)
    with _removed_on_failure(root, Path(builder.data_path).parent, root / "downloads" / builder.name):
        _stage(builder, staged)
        manual = source if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else None
        config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        try:
            with _without_absl_warnings(), _few_retries(), _quiet_if(isinstance(builder, digits.Digits)):
                builder.download_and_prepare(download_config=config, file_format=FILE_FORMAT)
        except ImportError as error:
            raise UserError(f"preparing {name} needs {error.name}: pip install 'flaxcnn[prepare]'") from error
        except requests.RequestException as error:
            url = error.request.url if error.request is not None else "a file"
            raise UserError(
                f"cannot download {url}: no connection; put the files of {name} into a folder "
                f"({', '.join(sorted(_file_names(builder).values()))}) and name it with --from"
            ) from error
        except (OSError, AssertionError, tfds.download.DownloadError) as error:
            if not is_prepared(open_builder(name, data_dir)):  # it is, where another process was faster
                raise UserError(f"cannot prepare {name}: {_first_line(error)}") from error
    return open_builder(name, data_dir)  # anew, because a builder reads its splits when it is made


def _file_names(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    """The files that a builder may download: {URL: file name}."""
    return {url: PurePosixPath(urlparse(url).path).name for url in builder.url_infos or {}}


def _match(builder: tfds.core.DatasetBuilder, source: Path) -> dict[str, Path]:
    """Returns {URL: file in `source`}, every file checked against TFDS's checksum before anything is written."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder")
    names = _file_names(builder)
    matched = {url: source / name for url, name in names.items() if (source / name).is_file()}
    if names and not matched:
        raise UserError(f"{source} holds none of the files of {builder.name}: {', '.join(sorted(names.values()))}")
    for url, path in matched.items():
        expected, found = builder.url_infos[url], checksums.compute_url_info(path)
        if (found.size, found.checksum) != (expected.size, expected.checksum):
            raise UserError(
                f"{path} is not the file that {builder.name} was published with: expected {int(expected.size)} "
                f"bytes with SHA-256 {expected.checksum}, found {int(found.size)} bytes with {found.checksum}"
            )
    return matched


def _stage(builder: tfds.core.DatasetBuilder, staged: dict[str, Path]) -> None:
    """Puts files where TFDS looks for what it has downloaded already."""
    folder = Path(builder.data_dir_root) / "downloads" / builder.name
    for url, path in staged.items():
        info = builder.url_infos[url]
        target = folder / resource.get_dl_fname(url, info.checksum)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        resource.write_info_file(
            url=url, path=target, dataset_name=builder.name, original_fname=path.name, url_info=info
        )


@contextlib.contextmanager
def _few_retries():
    """Has TFDS give up on a host that does not answer after seconds; by itself it takes over three minutes."""
    before, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 4
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


@contextlib.contextmanager
def _without_absl_warnings():
    """Leaves out TFDS's remarks on folders that are not prepared yet."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _quiet_if(tiny: bool):
    """Leaves out TFDS's messages and progress bars for a set that takes no time."""
    if not tiny:
        yield
        return
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _removed_on_failure(*folders: Path):
    """Removes, if the block fails, those of the folders that did not exist before it; the first is the root."""
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in new:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (folders[0] / "downloads" / "extracted", folders[0] / "downloads"):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if empty
        raise


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
