"""What libpng, libjpeg and libtiff write to standard error about damaged images: one line of it, and no flood.

They write to the file descriptor, past Python, and no setting stops them. `caught` puts a file in its place while
images are decoded. What others have written in the meantime is passed on.
"""

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

# How lines of decoders begin; PIL's are Python's warnings, of two lines each.
_OF_DECODERS = re.compile(
    rb"libpng |libtiff|TIFF|Corrupt JPEG|Premature end of JPEG|Invalid |Unsupported |Warning: |Error: |"
    rb"\s*$|\[ ?(WARN|ERROR)|.*[/\\]PIL[/\\].*Warning: |  warnings\.warn|\S*: Warning, "
)

_lock = threading.Lock()
_depth = 0  # how many blocks, in all threads, are under way
_file: IO[bytes] | None = None
_stderr = -1  # what descriptor 2 was
_first: str | None = None  # the first remark, until it is taken
_told = False


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """A block, in any thread, in which decoders may write to standard error; blocks within it cost nothing."""
    global _depth
    with _lock:
        if _depth == 0:
            _begin()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _end()


def take() -> str | None:
    """Returns the first remark since the last call, if there was one: for a process that works for another."""
    global _first
    with _lock:
        remark, _first = _first, None
    return remark


def tell(remark: str | None) -> None:
    """Prints a remark, the first time that there is one in this process."""
    global _told
    with _lock:
        if remark is None or _told:
            return
        _told = True
    print(f"{remark} (a decoder's remark on an image; further ones are not shown)", file=sys.stderr)


def _begin() -> None:
    global _file, _stderr
    try:
        if _file is None:
            _file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as the process
        _stderr = os.dup(2)
        os.dup2(_file.fileno(), 2)
    except OSError:  # no standard error, or no room for a file
        _stderr = -1


def _end() -> None:
    global _first, _stderr
    if _stderr < 0:
        return
    os.dup2(_stderr, 2)
    os.close(_stderr)
    _stderr = -1
    if not os.fstat(_file.fileno()).st_size:
        return
    _file.seek(0)
    lines = _file.read().splitlines(keepends=True)
    _file.seek(0)
    _file.truncate()
    for line in lines:
        if not _OF_DECODERS.match(line):
            os.write(2, line)
        elif _first is None:
            _first = line.decode(errors="backslashreplace").strip()
