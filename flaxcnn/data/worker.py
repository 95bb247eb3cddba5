"""A process that decodes pictures: python -m flaxcnn.data.worker SOCKET MEMORY, file descriptors that it inherits.

Its first message is a list of `Delivery`; each further one a `Task`, which it answers with what `Delivery.fill`
returns, or with the error, and with what a decoder has remarked. It writes pixels into the shared memory, and ends
when the other end of the socket is closed, also by the death of the process that started it.
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

from flaxcnn.data import remarks
from flaxcnn.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """Some pictures to decode.

    Attributes:
      delivery: which of the list.
      offset: of the first row in the shared memory, in bytes.
      epoch: of the visit.
      examples: their numbers in the split.
      items: what the source finds them by.
    """

    delivery: int
    offset: int
    epoch: int
    examples: list[int]
    items: list[Any]


def rows(memory: Any, offset: int, count: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Returns `count` images of the shared memory as an array (count, *image_shape) uint8."""
    size = int(np.prod(image_shape))
    return np.frombuffer(memory, np.uint8, count * size, offset).reshape(count, *image_shape)


def settle() -> None:
    """Sets this process up for decoding, as one of several."""
    cv2.setNumThreads(0)  # there is one process a core already
    # The C library returns large blocks to the system, and getting each picture's anew costs as much as scaling it.
    # After a block of nearly 32 MiB, the most that it allows, it keeps what is smaller.
    np.empty(32 * 2**20 - 2**16, np.uint8)


def main(socket: int, memory: int) -> None:
    """Answers tasks until there is no one left who asks."""
    # The process that started it decides when to stop, also when a signal goes to all of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settle()
    connection = Connection(socket)
    try:
        deliveries = connection.recv()
        shared = mmap.mmap(memory, 0)
        while True:
            task: Task = connection.recv()
            delivery = deliveries[task.delivery]
            images = rows(shared, task.offset, len(task.items), delivery.image_shape)
            try:
                answer = delivery.fill(images, task.epoch, task.examples, task.items)
            except UserError as error:
                answer = error
            except Exception:  # a defect of ours; the one who asked tells of it
                answer = traceback.format_exc()
            connection.send((answer, remarks.take()))
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
