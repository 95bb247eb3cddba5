"""Downloads weight files into a cache, and checks them against the hash in their file names."""

import contextlib
import hashlib
import http.client
import re
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

from flaxcnn.cache import cache_folder
from flaxcnn.errors import UserError

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without receiving a byte


def fetch(file_name: str, url: str) -> Path:
    """Returns the path of a weight file in the cache. Downloads the file if it is missing or damaged.

    Several processes may call this concurrently: a file with its final name is always complete.

    Args:
      file_name: file name in the cache, such as "resnet50-0676ba61.pth". The eight hex digits after the last dash
        are the first of the file's SHA-256.
      url: URL to download from.

    Raises:
      UserError: the download failed, the file has another hash, or the cache cannot be written.
      ValueError: the file name has no such digits.
    """
    if not (match := re.fullmatch(r"[\w.-]+-([0-9a-f]{8})\.\w+", file_name)):
        raise ValueError(f"{file_name!r} does not end in a dash, eight hex digits and a suffix")
    target = cache_folder("weights") / file_name
    # A unique name in the folder of the target, so that the last step is an atomic rename.
    part = target.with_name(f"{file_name}.{uuid.uuid4().hex}.part")
    try:
        if target.is_file() and _sha256(target).startswith(match[1]):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with part.open("xb") as file:
            for chunk in _download(url, file_name):
                digest.update(chunk)
                file.write(chunk)
        if not digest.hexdigest().startswith(match[1]):
            raise UserError(
                f"{url} is not the file it is named after: its SHA-256 begins with {digest.hexdigest()[:8]}; try "
                f"again, or download it in another way and give its path"
            )
        part.replace(target)
    except OSError as error:
        raise UserError(
            f"cannot keep {file_name} in {target.parent}: {error.strerror or error}; "
            f"set FLAXCNN_CACHE to another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, name: str) -> Iterator[bytes]:
    """Yields the content of a URL in chunks, and shows progress if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not sys.stderr.isatty()
    request = urllib.request.Request(url, headers={"User-Agent": "flaxcnn"})
    try:
        with (
            urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
            Progress(*columns, console=Console(stderr=True), disable=hidden) as progress,
        ):
            total = int(response.headers.get("Content-Length", 0)) or None
            task = progress.add_task(name, total=total)
            received = 0
            while chunk := response.read(_CHUNK):
                received += len(chunk)
                progress.update(task, completed=received)
                yield chunk
            if total and received < total:
                raise ConnectionError(f"broke off after {received} of {total} bytes")
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are subclasses of OSError
        reason = error.reason if type(error) is URLError else error
        raise UserError(
            f"cannot download {url}: {' '.join(str(reason).split()) or type(reason).__name__}; "
            f"download {name} in another way and give its path"
        ) from error
