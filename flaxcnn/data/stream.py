"""Pictures decoded by other processes, ahead of use: the same batches in the same order, however many they are."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from flaxcnn.data import remarks
from flaxcnn.data.delivery import Delivery
from flaxcnn.data.worker import Task, rows
from flaxcnn.errors import UserError

# Pictures a task: enough that a message costs nothing beside them, and that records are read many at once.
CHUNK = 32
# Batches that are decoded while one is used.
AHEAD = 2

Array = np.ndarray
# (number of the example, reason) -> nothing; told of each picture that cannot be read.
OnBad = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """A batch that is wanted.

    Attributes:
      epoch: counted from 0.
      examples: (B,) int32, numbers in the split.
      mask: (B,) float32, 0 where the batch is filled up.
    """

    epoch: int
    examples: Array
    mask: Array


class Stream:
    """Worker processes and the memory that they share with this one. A context, at whose end they are gone.

    With no workers a thread of this process decodes instead, to the same pixels.
    """

    def __init__(self, deliveries: dict[str, Delivery], *, batch_sizes: dict[str, int], workers: int):
        """Starts the processes.

        Args:
          deliveries: of the splits, by a name for each.
          batch_sizes: of each, in this process.
          workers: number of processes; 0 for none.
        """
        self._deliveries, self._names = deliveries, list(deliveries)
        chunks_ahead = 2 * max(workers, 1)
        self._slots, size = {}, 0
        for name, delivery in deliveries.items():
            length = batch_sizes[name] * int(np.prod(delivery.image_shape))
            # Small batches: as many as give every worker something to do.
            count = 1 + max(AHEAD, -(-chunks_ahead * min(CHUNK, batch_sizes[name]) // batch_sizes[name]))
            self._slots[name] = collections.deque(range(size, size + count * length, length))
            size += count * length
        # Not multiprocessing: its processes run the main module anew, which would load JAX in each, and they
        # outlive a parent that is killed. Not /dev/shm: containers often have 64 MiB of it.
        file = _anonymous_file(size)
        self._memory = mmap.mmap(file, size)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, file)
            for _ in range(workers):
                self._workers.append(_Worker(list(deliveries.values()), file))
                opened.callback(self._workers[-1].close)
                self._idle.put(self._workers[-1])
            threads = concurrent.futures.ThreadPoolExecutor(max(workers, 1), thread_name_prefix="decode")
            self._threads = opened.enter_context(threads)
            self._opened = opened.pop_all()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def batches(self, name: str, requests: Iterable[Request], on_bad: OnBad) -> Iterator[dict[str, Array]]:
        """Yields the batch of each request in order: image, label, mask, and visit (B, 2) int32, epoch and example.

        A batch is decoded while those before it are used. Its images lie in memory that is used again once the next
        one is asked for. Of a picture that cannot be read `on_bad` is told; the image is black and its mask 0.

        Raises:
          UserError: a process has died, or the data set is damaged.
        """
        delivery, slots, coming = self._deliveries[name], self._slots[name], iter(requests)
        under_way: collections.deque[tuple[Request, int, list]] = collections.deque()
        try:
            while True:
                while slots and (request := next(coming, None)) is not None:
                    offset = slots.popleft()
                    under_way.append((request, offset, []))
                    for task in self._tasks(name, request, offset):
                        under_way[-1][2].append((task, self._threads.submit(self._run, task)))
                if not under_way:
                    return
                request, offset, parts = under_way[0]
                images = rows(self._memory, offset, len(request.examples), delivery.image_shape)
                labels, mask = np.zeros(len(images), np.int32), request.mask.copy()
                row = 0
                for task, future in parts:
                    found, bad = future.result()
                    labels[row : row + len(found)] = found
                    for example, reason in bad:
                        mask[row + task.examples.index(example)] = 0
                        on_bad(example, reason)
                    row += len(found)
                images[row:] = 0
                visit = np.stack([np.full(len(images), request.epoch, np.int32), request.examples], axis=1)
                yield {"image": images, "label": labels, "mask": mask, "visit": visit}
                under_way.popleft()
                slots.append(offset)
        finally:
            # No one may still be writing into memory that is free again.
            concurrent.futures.wait([future for _, _, parts in under_way for _, future in parts])
            slots.extend(offset for _, offset, _ in under_way)

    def _tasks(self, name: str, request: Request, offset: int) -> Iterator[Task]:
        delivery = self._deliveries[name]
        real = int(request.mask.sum())  # what fills a batch up comes last
        size = int(np.prod(delivery.image_shape))
        for start in range(0, real, CHUNK):
            examples = request.examples[start : min(start + CHUNK, real)].tolist()
            yield Task(
                delivery=self._names.index(name),
                offset=offset + start * size,
                epoch=request.epoch,
                examples=examples,
                items=delivery.source.items(examples),
            )

    def _run(self, task: Task) -> tuple[list[int], list[tuple[int, str]]]:
        if not self._workers:
            delivery = self._deliveries[self._names[task.delivery]]
            images = rows(self._memory, task.offset, len(task.items), delivery.image_shape)
            answer = delivery.fill(images, task.epoch, task.examples, task.items)
            remarks.tell(remarks.take())
            return answer
        worker = self._idle.get()
        try:
            return worker.ask(task)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process of `flaxcnn.data.worker`, and the socket to it."""

    def __init__(self, deliveries: Sequence[Delivery], memory: int):
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flaxcnn.data.worker", str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the process that it works for
            )
        self._connection = Connection(ours.detach())
        self._greeting: Sequence[Delivery] | None = deliveries

    def ask(self, task: Task) -> tuple[list[int], list[tuple[int, str]]]:
        """Returns the answer to a task."""
        try:
            if self._greeting is not None:
                self._connection.send(list(self._greeting))
                self._greeting = None
            self._connection.send(task)
            answer, remark = self._connection.recv()
        except (EOFError, OSError) as error:
            raise UserError(self._obituary()) from error
        remarks.tell(remark)
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str):
            raise RuntimeError(f"decoding pictures {task.examples} failed:\n{answer}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self.process.wait()

    def _obituary(self) -> str:
        code = self.process.wait()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        message = f"a process that decodes pictures ended {how}"
        if code == -signal.SIGKILL:
            message += ", which the system sends when memory runs out; a smaller --config.data.workers takes less"
        return f"{message}; the same command continues from the newest checkpoint"


def _anonymous_file(size: int) -> int:
    """Returns the descriptor of a file without a name, which goes with the last process that has it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("flaxcnn")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
