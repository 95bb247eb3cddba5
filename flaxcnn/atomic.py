"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """Yields a file to write to, which takes its place as `path` at the end of the block unless that fails."""
    # In the same folder, so that the last step is a renaming, which either happens or does not.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | bytearray) -> None:
    """Writes a file, text as UTF-8; a process that is killed, or a disk that is full, leaves the old one."""
    with appears_whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
