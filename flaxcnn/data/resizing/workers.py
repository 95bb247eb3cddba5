"""Worker processes that scale images.

The processes import this module, so it imports neither JAX nor TFDS.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2

from flaxcnn.cores import available_cores
from flaxcnn.data.decoding import messages
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.resizing.image import resize_to_jpeg
from flaxcnn.data.sources.protocol import Source

# (JPEG, or the reason why the image cannot be read; label; whether the image was scaled down)
ResizedImage = tuple[bytes | BadImage, int, bool]


@contextlib.contextmanager
def open_pool(sources: Mapping[str, Source]) -> Iterator[concurrent.futures.Executor]:
    """Context manager that yields a pool of one process per core, to run `resize` on the given splits."""
    context = multiprocessing.get_context("spawn")  # forking a process with threads may hang
    stop = context.RawValue("b", 0)  # not an Event: a process that is killed might keep its lock
    pool = concurrent.futures.ProcessPoolExecutor(
        available_cores(), context, initializer=_start_worker, initargs=(sources, stop)
    )
    try:
        yield pool
    finally:
        stop.value = 1  # results of the current tasks are no longer needed
        pool.shutdown(cancel_futures=True)


# State of a worker process, set by `_start_worker`.
_sources: Mapping[str, Source] = {}
_stop: Any = types.SimpleNamespace(value=0)


def _start_worker(sources: Mapping[str, Source], stop: Any) -> None:
    global _sources, _stop
    _sources, _stop = sources, stop
    cv2.setNumThreads(0)  # there is already one process per core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides what Ctrl-C does
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent process ends, even if the parent is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def resize(split: str, items: Sequence[Any], side: int) -> tuple[list[ResizedImage], str | None]:
    """Reads and scales images in a worker process; stops early when the pool is closed.

    Args:
      split: name of the split.
      items: result of `Source.items` for the images.
      side: shorter side in pixels.

    Returns:
      (resized images, first message that a decoder printed or None).
    """
    found: list[ResizedImage] = []
    for encoded, label in _sources[split].read(items):
        if _stop.value:
            break
        try:
            if isinstance(encoded, BadImage):
                raise encoded
            resized, larger = resize_to_jpeg(encoded, side)
            found.append((resized, label, larger))
        except BadImage as reason:
            found.append((reason, label, False))
    return found, messages.take()
