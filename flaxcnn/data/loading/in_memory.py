"""A loader that decodes a split once and replicates it on every device, where each step gathers its batch."""

import concurrent.futures
from collections.abc import Callable, Iterator

import numpy as np

from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.decoding import messages
from flaxcnn.data.loading.bad_images import BadImages
from flaxcnn.data.loading.batch import Arrays, DeviceBatch, gather
from flaxcnn.data.loading.prefetch import Prefetcher
from flaxcnn.data.loading.sampler import BatchIndices
from flaxcnn.parallel.strategy import Strategy

# Number of images that a thread reads at a time.
_CHUNK = 1024


class InMemoryLoader:
    """Loads batches from a split in the memory of the devices; see `flaxcnn.data.loading.loader.Loader`."""

    assemble = staticmethod(gather)

    def __init__(self, dataset: ImageDataset, strategy: Strategy, bad_images: BadImages):
        """Decodes the split and replicates it on every device.

        Args:
          dataset: the split.
          strategy: strategy whose devices get the split and the batches.
          bad_images: records images that cannot be read.

        Raises:
          UserError: an image cannot be read and must not be skipped, or the dataset is damaged.
        """
        self.dataset, self.bad_images = dataset, bad_images
        self._strategy = strategy
        self.resident: Arrays = strategy.replicate(decode_all(dataset, bad_images))

    def batches(self, indices: Iterator[BatchIndices]) -> Prefetcher:
        """Returns a `DeviceBatch` for each item of `indices`, in order."""
        return Prefetcher((DeviceBatch(self._inputs(each), each.count) for each in indices), ahead=0)

    def masked_inputs(self, *shape: int) -> Arrays:
        """Returns fully masked inputs. `shape` is (B,), B rows in this process; or (B, N), for N steps per call."""
        return self._inputs(BatchIndices.masked(*shape))

    def count_bad(self) -> int:
        """Returns the number of images that could not be read. Every process has decoded the whole split."""
        return len(self.bad_images.reasons)

    def _inputs(self, indices: BatchIndices) -> Arrays:
        return self._strategy.shard({"mask": indices.mask, "sample_id": indices.sample_ids})


def decode_all(dataset: ImageDataset, on_bad: Callable[[int, str], None]) -> dict[str, np.ndarray]:
    """Decodes a whole split on all cores.

    Args:
      dataset: the split.
      on_bad: `on_bad(index, reason)`, called for each image that cannot be read.

    Returns:
      A dict of image (N, H, W, C) uint8, label (N,) int32 and mask (N,) float32. An image that cannot be read is
      black, and its mask is 0.

    Raises:
      UserError: the dataset is damaged.
    """
    count = len(dataset)
    images = np.empty((count, *dataset.image_shape), np.uint8)
    labels = np.empty(count, np.int32)

    def decode(start: int) -> list[tuple[int, str]]:
        indices = list(range(start, min(start + _CHUNK, count)))
        rows = slice(start, start + len(indices))
        labels[rows], bad = dataset.decode_into(images[rows], 0, indices, dataset.source.items(indices))
        return bad

    mask = np.ones(count, np.float32)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for bad in pool.map(decode, range(0, count, _CHUNK)):
            for index, reason in bad:
                mask[index] = 0
                on_bad(index, reason)
    messages.tell(messages.take())
    return {"image": images, "label": labels, "mask": mask}
