"""Fetching batches ahead of use, and measuring the time for which the device waits for them."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.parallel.processes import raise_on_all_processes


class Prefetcher:
    """Returns batches in order, while a thread fetches the next ones. Must be closed.

    A process that fails to get a batch must not block the others inside a collective: it supplies fully masked
    batches until the next `check`, where all processes raise together.

    Attributes:
      idle_seconds: seconds so far for which the device was idle because no batch was ready.
    """

    def __init__(
        self, batches: Generator[Any, None, None], ahead: int, masked_batch: Callable[[], Any] | None = None
    ):
        """Starts to fetch batches.

        Args:
          batches: generator of the batches.
          ahead: number of batches to keep ready. With 0 there is no thread, and `next` fetches a batch itself.
          masked_batch: `masked_batch()` returns a fully masked batch. None if there is only one process.
        """
        self.idle_seconds = 0.0
        self._batches, self._thread, self._masked_batch = batches, None, masked_batch
        self._ended: BaseException | None = None  # the exception that ended `batches`
        if ahead:
            self._ready: queue.Queue = queue.Queue(ahead)
            self._closed = threading.Event()
            self._thread = threading.Thread(target=self._fetch, daemon=True)
            self._thread.start()

    def next(self, busy: Any = None) -> Any:
        """Returns the next batch.

        Args:
          busy: the last array that the device has to compute. Only the time after it is ready counts as idle.

        Raises:
          UserError: a batch could not be loaded. With several processes `check` raises it instead.
          StopIteration: there are no more batches.
        """
        if self._thread is None:
            return next(self._batches)
        if self._ended is not None:
            return self._masked_or_raise(self._ended)
        idle_since = None
        while True:
            if idle_since is None and busy is not None and busy.is_ready():
                idle_since = time.perf_counter()
            try:
                batch = self._ready.get(timeout=0.002 if idle_since is None else None)
                break
            except queue.Empty:
                continue
        if idle_since is not None:
            self.idle_seconds += time.perf_counter() - idle_since
        if isinstance(batch, BaseException):
            self._ended = batch
            return self._masked_or_raise(batch)
        return batch

    def check(self) -> None:
        """Raises an error in all processes if one of them could not get a batch. All processes must call it.

        Raises:
          UserError: a process could not get a batch.
        """
        with raise_on_all_processes():
            if isinstance(self._ended, UserError):
                raise self._ended

    def close(self) -> None:
        """Stops the thread and closes the generator of batches."""
        if self._thread is not None:
            self._closed.set()
            self._thread.join()
        self._batches.close()

    def _masked_or_raise(self, ended: BaseException) -> Any:
        if isinstance(ended, UserError) and self._masked_batch is not None:
            return self._masked_batch()
        raise ended

    def _fetch(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(batch):
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, batch: Any) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(batch, timeout=0.1)
                return True
        return False
