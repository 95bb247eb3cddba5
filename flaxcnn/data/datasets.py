"""A split in memory: every picture decoded once, uint8, ready for the device."""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable

import numpy as np

from flaxcnn.data import remarks
from flaxcnn.data.delivery import Delivery

READ_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """The arrays of a split.

    Attributes:
      images: (N, H, W, C) uint8, C of 1 (grey) or 3 (RGB).
      labels: (N,) int32.
      mask: (N,) float32, 0 for a picture that cannot be read, which is black.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def decoded_bytes(delivery: Delivery) -> int:
    """Returns what a split takes in memory, in bytes."""
    return math.prod((len(delivery.source), *delivery.image_shape))


def load(delivery: Delivery, on_bad: Callable[[int, str], None]) -> ImageDataset:
    """Decodes a whole split, on all cores.

    Args:
      delivery: the split, and what becomes of its pictures.
      on_bad: told the number of each picture that cannot be read, and why.

    Raises:
      UserError: the set is damaged.
    """
    count = len(delivery.source)
    images = np.empty((count, *delivery.image_shape), np.uint8)
    labels = np.empty(count, np.int32)

    def read(start: int) -> list[tuple[int, str]]:
        examples = list(range(start, min(start + READ_AT_ONCE, count)))
        part = slice(start, start + len(examples))
        labels[part], bad = delivery.fill(images[part], 0, examples, delivery.source.items(examples))
        return bad

    mask = np.ones(count, np.float32)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for bad in pool.map(read, range(0, count, READ_AT_ONCE)):
            for example, reason in bad:
                mask[example] = 0
                on_bad(example, reason)
    remarks.tell(remarks.take())
    return ImageDataset(images, labels, mask)
