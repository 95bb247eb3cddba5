"""SIGTERM as an exception."""

import contextlib
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def terminated_by_exception() -> Iterator[None]:
    """Context manager in which SIGTERM raises `SystemExit`, so that half-written files are removed."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
