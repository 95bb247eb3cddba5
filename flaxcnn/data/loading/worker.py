"""The program of a worker process, which decodes images: python -m flaxcnn.data.loading.worker SOCKET MEMORY.

SOCKET and MEMORY are file descriptors that the process inherits. The first message it gets is a list of
`ImageDataset`. Each further message is a `Task`: the process decodes its images into the shared memory, and answers
with (result of `ImageDataset.decode_into` or the error, first message that a decoder printed or None). The process
ends when the other end of the socket is closed, also because its parent process has died.
"""

import dataclasses
import mmap
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np

from flaxcnn.data.decoding import messages
from flaxcnn.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """Images of one split to decode.

    Attributes:
      dataset: position of the split in the list of `ImageDataset` that the process has got.
      offset: offset in the shared memory, in bytes, at which the first image is written.
      epoch: epoch of the batch.
      indices: indices of the images in the split.
      items: result of `Source.items` for these indices.
    """

    dataset: int
    offset: int
    epoch: int
    indices: list[int]
    items: list[Any]


def rows_of(memory: Any, offset: int, count: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Returns a view of `count` images in the shared memory, (count, *image_shape) uint8."""
    size = int(np.prod(image_shape))
    return np.frombuffer(memory, np.uint8, count * size, offset).reshape(count, *image_shape)


def configure_process() -> None:
    """Configures this process to decode images in parallel with other worker processes."""
    cv2.setNumThreads(0)  # there is already one process per core
    # The C library returns freed large blocks to the system, and allocating one anew for each image takes as long
    # as scaling it. Once a block of nearly 32 MiB, the largest that counts, was freed, smaller blocks are kept.
    np.empty(32 * 2**20 - 2**16, np.uint8)


def main(socket: int, memory: int) -> None:
    """Answers tasks until the other end of the socket is closed.

    Args:
      socket: file descriptor of the socket.
      memory: file descriptor of the shared memory.
    """
    # The parent process decides when to stop, also if a signal is sent to all processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_process()
    connection = Connection(socket)
    try:
        datasets = connection.recv()
        shared = mmap.mmap(memory, 0)
        while True:
            task: Task = connection.recv()
            dataset = datasets[task.dataset]
            images = rows_of(shared, task.offset, len(task.items), dataset.image_shape)
            try:
                answer = dataset.decode_into(images, task.epoch, task.indices, task.items)
            except UserError as error:
                answer = error
            except Exception:  # a bug; the process that asked reports it
                answer = traceback.format_exc()
            connection.send((answer, messages.take()))
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
