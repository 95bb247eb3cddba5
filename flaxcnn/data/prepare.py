"""From a name to a prepared TFDS data set, stored as array_record so that it is read without TensorFlow."""

import contextlib
import hashlib
import importlib.util
import io
import logging as python_logging
import re
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import requests
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import constants, registered
from tensorflow_datasets.core.download import checksums, downloader, resource

from flaxcnn.data import digits
from flaxcnn.errors import UserError, first_line, nearest, printable
from flaxcnn.paths import local_path

FILE_FORMAT = "array_record"


def open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a data set, prepared or not.

    Args:
      name: TFDS name, with an optional config and version: "emnist/letters", "cifar10:3.0.2".
      data_dir: folder of prepared sets; None for TFDS's own ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Raises:
      UserError: no such data set, config or version, prepared in another format, or an address as the folder.
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
    """Returns what else to write: a folder as one, how to make a resized set, or sets of similar names."""
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
    """Returns how to write a folder of images that was named as if it were a TFDS set, or ""."""
    is_path = local_path(name).is_dir() or name.startswith(("/", "~", "./", "../"))
    return f"; a folder of images is written folder:{printable(name)}" if is_path else ""


def folder_of_sets(data_dir: str | None) -> Path:
    """Returns the folder of prepared sets; for None, TFDS's own."""
    return local_path(data_dir or constants.DATA_DIR)


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns whether the data set lies on disk, complete."""
    with without_absl_warnings():
        return builder.is_prepared()


def supervised_keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """Returns the keys of the image and of the label in an example.

    Raises:
      UserError: the set is not made of images with one class label each.
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
        raise UserError(f"preparing {name} needs TensorFlow: pip install -e '.[prepare]'")

    with removed_on_failure(builder):
        _stage(builder, staged)
        manual = source if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else None
        config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        try:
            with without_absl_warnings(), _few_retries(), quiet_if(isinstance(builder, digits.Digits)):
                builder.download_and_prepare(download_config=config, file_format=FILE_FORMAT)
        except ImportError as error:
            raise UserError(f"preparing {name} needs {error.name}: pip install -e '.[prepare]'") from error
        except requests.RequestException as error:
            url = error.request.url if error.request is not None else "a file"
            raise UserError(
                f"cannot download {url}: no connection; put the files of {name} into a folder "
                f"({', '.join(sorted(_file_names(builder).values()))}) and name it with --from"
            ) from error
        except (OSError, AssertionError, tfds.download.DownloadError) as error:
            if not is_prepared(open_builder(name, data_dir)):  # it is, where another process was faster
                raise UserError(f"cannot prepare {name}: {first_line(error, 300)}") from error
    return open_builder(name, data_dir)  # anew, because a builder reads its splits when it is made


def _file_names(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    """The files that a builder may download: {URL: the name under which a browser would save it}."""
    infos = builder.url_infos or {}
    return {url: info.filename or PurePosixPath(urlparse(url).path).name for url, info in infos.items()}


def _match(builder: tfds.core.DatasetBuilder, source: Path) -> dict[str, bytes]:
    """Returns {URL: content of its file in `source`}, each equal to what TFDS's checksum is of.

    Nothing is written. Of several URLs whose files have one name, a file stands for the one that it equals.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder")
    names = _file_names(builder)
    matched: dict[str, bytes] = {}
    for name in sorted(set(names.values())):
        if not (source / name).is_file():
            continue
        content = (source / name).read_bytes()
        urls = [url for url, other in names.items() if other == name]
        genuine = {url: found for url in urls if (found := _as_published(content, name, builder.url_infos[url]))}
        if not genuine:
            expected = builder.url_infos[urls[0]]
            raise UserError(
                f"{source / name} is not the file that {builder.name} was published with: expected "
                f"{int(expected.size)} bytes with SHA-256 {expected.checksum}, found {len(content)} bytes with "
                f"{hashlib.sha256(content).hexdigest()}"
            )
        matched.update(genuine)
    if names and not matched:
        raise UserError(
            f"{source} holds none of the files of {builder.name}: {', '.join(sorted(set(names.values())))}"
        )
    return matched


# A gzip file's header may hold the name and the time of what it packs. Debian's package dataset-fashion-mnist has
# taken the name out of its files and put in the time of the package, which changes their checksums. These are the
# times, by the checksum of the file as published.
_STRIPPED_GZIP_HEADER = bytes.fromhex("1f8b0800ed0ada5e0003")
_GZIP_TIMES = {
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84": 1504176606,
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845": 1504176606,
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073": 1504176627,
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5": 1504176627,
}


def _as_published(content: bytes, name: str, expected: checksums.UrlInfo) -> bytes | None:
    """Returns the content, its gzip header restored if need be, if that has the published checksum; else None."""
    candidates = [content]
    if expected.checksum in _GZIP_TIMES and content.startswith(_STRIPPED_GZIP_HEADER):
        time = _GZIP_TIMES[expected.checksum].to_bytes(4, "little")
        packed_name = name.removesuffix(".gz").encode() + b"\0"
        header = bytes.fromhex("1f8b0808") + time + _STRIPPED_GZIP_HEADER[8:] + packed_name
        candidates.append(header + content[len(_STRIPPED_GZIP_HEADER) :])
    for candidate in candidates:
        if len(candidate) == expected.size and hashlib.sha256(candidate).hexdigest() == expected.checksum:
            return candidate
    return None


def _stage(builder: tfds.core.DatasetBuilder, staged: dict[str, bytes]) -> None:
    """Puts files where TFDS looks for what it has downloaded already."""
    folder = Path(builder.data_dir_root) / "downloads" / builder.name
    for url, content in staged.items():
        info = builder.url_infos[url]
        target = folder / resource.get_dl_fname(url, info.checksum)
        folder.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        resource.write_info_file(
            url=url,
            path=target,
            dataset_name=builder.name,
            original_fname=_file_names(builder)[url],
            url_info=info,
        )


@contextlib.contextmanager
def _few_retries():
    """Has TFDS give up on a host that does not answer after seconds; by itself it takes over three minutes."""
    urllib3 = python_logging.getLogger("urllib3")
    before, level = downloader.MAX_RETRIES, urllib3.level
    downloader.MAX_RETRIES = 4
    urllib3.setLevel(python_logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before
        urllib3.setLevel(level)


@contextlib.contextmanager
def without_absl_warnings():
    """Leaves out TFDS's remarks on folders that are not prepared yet."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def quiet_if(tiny: bool):
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
def removed_on_failure(builder: tfds.core.DatasetBuilder):
    """Removes, if the block fails, what it wrote of this data set, and the folders that are empty then."""
    root, own = Path(builder.data_dir_root), Path(builder.data_path).parent
    downloads = root / "downloads"
    made = [folder for folder in (root, *root.parents) if not folder.exists()]

    def present() -> set[Path]:
        return {*own.glob("*"), *downloads.glob(builder.name)}

    before = present()
    try:
        yield
    except BaseException:
        for path in present() - before:
            shutil.rmtree(path, ignore_errors=True)
        for folder in (own, downloads / "extracted", downloads, *made):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if empty
        raise
