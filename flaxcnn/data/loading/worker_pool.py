"""Worker processes that decode images ahead of use. Batches do not depend on the number of processes."""

import collections
import concurrent.futures
import contextlib
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.decoding import messages
from flaxcnn.data.loading.sampler import BatchIndices
from flaxcnn.data.loading.worker import Task, rows_of
from flaxcnn.errors import UserError

# Images per task: so many that sending messages takes little time in comparison, and that many records are read at
# once.
CHUNK = 32
# Minimum number of batches that are decoded while one is used.
BATCHES_AHEAD = 2

Array = np.ndarray
# (index, reason) -> None, called for each image that cannot be read.
OnBad = Callable[[int, str], None]


class WorkerPool:
    """Worker processes that decode images into memory that they share with this process.

    It is a context manager, whose exit ends the processes. Without workers, a thread of this process decodes the
    images.
    """

    def __init__(self, datasets: dict[str, ImageDataset], *, rows: dict[str, int], workers: int):
        """Starts the processes.

        Args:
          datasets: {name of a split: dataset}.
          rows: {name of a split: number of rows of a batch in this process}.
          workers: number of processes; 0 decodes in a thread of this process.
        """
        self._datasets, self._names = datasets, list(datasets)
        chunks_ahead = 2 * max(workers, 1)
        self._free, size = {}, 0  # free offsets in the shared memory, one per batch that may be in progress
        for name, dataset in datasets.items():
            length = rows[name] * int(np.prod(dataset.image_shape))
            # If batches are small, so many that every worker is busy.
            count = 1 + max(BATCHES_AHEAD, -(-chunks_ahead * min(CHUNK, rows[name]) // rows[name]))
            self._free[name] = collections.deque(range(size, size + count * length, length))
            size += count * length
        # Not multiprocessing: its processes import the main module again, which would load JAX in each of them, and
        # they outlive a parent that is killed. Not /dev/shm: in containers it often has only 64 MiB.
        file = _anonymous_file(size)
        self._memory = mmap.mmap(file, size)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, file)
            for _ in range(workers):
                self._workers.append(_Worker(list(datasets.values()), file))
                opened.callback(self._workers[-1].close)
                self._idle.put(self._workers[-1])
            threads = concurrent.futures.ThreadPoolExecutor(max(workers, 1), thread_name_prefix="decode")
            self._threads = opened.enter_context(threads)
            self._opened = opened.pop_all()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def batches(
        self, name: str, indices: Iterable[BatchIndices], on_bad: OnBad
    ) -> Generator[dict[str, Array], None, None]:
        """Yields the batches of a split in order, each a dict of host arrays: image, label, mask and sample_id.

        A batch is decoded while previous batches are used. The memory of its images is reused as soon as the next
        batch is requested. An image that cannot be read is black and masked.

        Args:
          name: name of the split.
          indices: indices of the examples of each batch, with padding last.
          on_bad: `on_bad(index, reason)`, called for each image that cannot be read.

        Raises:
          UserError: a worker process has died, or the dataset is damaged.
        """
        dataset, free, coming = self._datasets[name], self._free[name], iter(indices)
        under_way: collections.deque[tuple[BatchIndices, int, list]] = collections.deque()
        try:
            while True:
                while free and (wanted := next(coming, None)) is not None:
                    offset = free.popleft()
                    under_way.append((wanted, offset, []))
                    for task in self._tasks(name, wanted, offset):
                        under_way[-1][2].append((task, self._threads.submit(self._run, task)))
                if not under_way:
                    return
                wanted, offset, chunks = under_way[0]
                images = rows_of(self._memory, offset, len(wanted.indices), dataset.image_shape)
                labels, mask = np.zeros(len(images), np.int32), wanted.mask.copy()
                row = 0
                for task, future in chunks:
                    found, bad = future.result()
                    labels[row : row + len(found)] = found
                    for index, reason in bad:
                        mask[row + task.indices.index(index)] = 0
                        on_bad(index, reason)
                    row += len(found)
                images[row:] = 0
                yield {"image": images, "label": labels, "mask": mask, "sample_id": wanted.sample_ids}
                under_way.popleft()
                free.append(offset)
        finally:
            # Memory must not be reused while a worker still writes to it.
            concurrent.futures.wait([future for _, _, chunks in under_way for _, future in chunks])
            free.extend(offset for _, offset, _ in under_way)

    def _tasks(self, name: str, wanted: BatchIndices, offset: int) -> Iterator[Task]:
        dataset = self._datasets[name]
        unpadded = int(wanted.mask.sum())
        size = int(np.prod(dataset.image_shape))
        for start in range(0, unpadded, CHUNK):
            indices = wanted.indices[start : min(start + CHUNK, unpadded)].tolist()
            yield Task(
                dataset=self._names.index(name),
                offset=offset + start * size,
                epoch=wanted.epoch,
                indices=indices,
                items=dataset.source.items(indices),
            )

    def _run(self, task: Task) -> tuple[list[int], list[tuple[int, str]]]:
        if not self._workers:
            dataset = self._datasets[self._names[task.dataset]]
            images = rows_of(self._memory, task.offset, len(task.items), dataset.image_shape)
            answer = dataset.decode_into(images, task.epoch, task.indices, task.items)
            messages.tell(messages.take())
            return answer
        worker = self._idle.get()
        try:
            return worker.ask(task)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process that runs `flaxcnn.data.loading.worker`, and the socket to it."""

    def __init__(self, datasets: Sequence[ImageDataset], memory: int):
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flaxcnn.data.loading.worker", str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # so that Ctrl-C does not reach it
            )
        self._connection = Connection(ours.detach())
        self._greeting: Sequence[ImageDataset] | None = datasets

    def ask(self, task: Task) -> tuple[list[int], list[tuple[int, str]]]:
        """Sends a task to the process and returns the result of `ImageDataset.decode_into`."""
        try:
            if self._greeting is not None:
                self._connection.send(list(self._greeting))
                self._greeting = None
            self._connection.send(task)
            answer, message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise UserError(self._how_it_died()) from error
        messages.tell(message)
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str):
            raise RuntimeError(f"decoding images {task.indices} failed:\n{answer}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self.process.wait()

    def _how_it_died(self) -> str:
        code = self.process.wait()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        message = f"a process that decodes images ended {how}"
        if code == -signal.SIGKILL:
            message += ", which the system sends when memory runs out; a smaller --config.data.workers takes less"
        return f"{message}; the same command continues from the newest checkpoint"


def _anonymous_file(size: int) -> int:
    """Returns the descriptor of a file without a name, which is removed when no process has it open."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("flaxcnn")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
