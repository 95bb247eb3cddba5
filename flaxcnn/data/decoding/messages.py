"""Suppresses messages that libpng, libjpeg and libtiff print about damaged images, except for the first one.

These libraries write directly to the file descriptor of standard error, and no setting stops them. `caught`
redirects that descriptor to a file while images are decoded. Output of other code in the meantime is passed on.
"""

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

# Beginnings of messages of decoders. Those of PIL are Python warnings of two lines each.
_OF_DECODERS = re.compile(
    rb"libpng |libtiff|TIFF|Corrupt JPEG|Premature end of JPEG|Invalid |Unsupported |Warning: |Error: |"
    rb"\s*$|\[ ?(WARN|ERROR)|.*[/\\]PIL[/\\].*Warning: |  warnings\.warn|\S*: Warning, "
)

_lock = threading.Lock()
_depth = 0  # number of `caught` blocks that are being executed, in all threads
_file: IO[bytes] | None = None
_stderr = -1  # duplicate of the original descriptor 2 during the outermost block
_first: str | None = None  # first message since the last call of `take`
_told = False


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Context manager, for any thread, that catches messages of decoders. Nested blocks take hardly any time."""
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
    """Returns the first message caught since the previous call, or None.

    A worker process sends it to its parent process, which prints it with `tell`.
    """
    global _first
    with _lock:
        message, _first = _first, None
    return message


def tell(message: str | None) -> None:
    """Prints a message to standard error, unless it is None or this process has already printed one."""
    global _told
    with _lock:
        if message is None or _told:
            return
        _told = True
    print(f"{message} (message of an image decoder; further ones are not shown)", file=sys.stderr)


def _begin() -> None:
    global _file, _stderr
    try:
        if _file is None:
            _file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the process runs
        _stderr = os.dup(2)
        os.dup2(_file.fileno(), 2)
    except OSError:  # there is no standard error, or no space for a file
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
