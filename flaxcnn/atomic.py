"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes | bytearray) -> None:
    """Writes a file, text as UTF-8; a process that is killed, or a disk that is full, leaves the old one."""
    # In the same folder, so that the last step is a renaming, which either happens or does not.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
