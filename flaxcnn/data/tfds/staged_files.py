"""Checks files that the user has downloaded, and copies them to where TFDS looks for downloaded files."""

import hashlib
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, resource

from flaxcnn.errors import UserError

# The header of a gzip file may hold the name and the time of the packed file. Debian's package
# dataset-fashion-mnist removes the name and writes the time of the package, which changes the checksums.
# _GZIP_TIMES maps the checksum of each published file to the time in its header.
_STRIPPED_GZIP_HEADER = bytes.fromhex("1f8b0800ed0ada5e0003")
_GZIP_TIMES = {
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84": 1504176606,
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845": 1504176606,
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073": 1504176627,
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5": 1504176627,
}


def file_names(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    """Returns {URL that a builder may download: file name under which a browser would save it}."""
    infos = builder.url_infos or {}
    return {url: info.filename or PurePosixPath(urlparse(url).path).name for url, info in infos.items()}


def match(builder: tfds.core.DatasetBuilder, source: Path) -> dict[str, bytes]:
    """Reads the files in a folder that a builder would otherwise download. Nothing is written.

    If the files of several URLs have the same name, the checksum decides to which URL a file belongs.

    Args:
      builder: the TFDS builder.
      source: folder with the downloaded files.

    Returns:
      {URL: content of its file}. The content has TFDS's checksum.

    Raises:
      UserError: a file has the wrong checksum, or the folder holds none of the files.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder")
    names = file_names(builder)
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


def _as_published(content: bytes, name: str, expected: checksums.UrlInfo) -> bytes | None:
    """Returns the content, with its gzip header restored if necessary; None if it is not the published file."""
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


def stage(builder: tfds.core.DatasetBuilder, files: dict[str, bytes]) -> None:
    """Writes files to the folder in which TFDS looks for files that it has already downloaded.

    Args:
      builder: the TFDS builder.
      files: {URL: content of its file}, as `match` returns it.
    """
    folder = Path(builder.data_dir_root) / "downloads" / builder.name
    for url, content in files.items():
        info = builder.url_infos[url]
        target = folder / resource.get_dl_fname(url, info.checksum)
        folder.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        resource.write_info_file(
            url=url,
            path=target,
            dataset_name=builder.name,
            original_fname=file_names(builder)[url],
            url_info=info,
        )
