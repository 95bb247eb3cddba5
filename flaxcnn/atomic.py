"""Atomic file writes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """Context manager that writes a file atomically.

    Yields the path of a temporary file to write. If the block succeeds, the temporary file is renamed to `path` and
    replaces an existing file. If the block raises, the temporary file is removed.
    """
    # In the same folder, because only a rename within a file system is atomic.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | bytearray) -> None:
    """Writes a file atomically, text as UTF-8. If that fails, an existing file at `path` stays unchanged."""
    with appears_whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
