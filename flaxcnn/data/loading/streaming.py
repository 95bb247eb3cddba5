"""A loader whose worker processes decode each batch ahead of use, in every epoch anew."""

import contextlib
from collections.abc import Generator, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.loading.bad_images import BadImages
from flaxcnn.data.loading.batch import Arrays, DeviceBatch, take_whole
from flaxcnn.data.loading.prefetch import Prefetcher
from flaxcnn.data.loading.sampler import BatchIndices
from flaxcnn.data.loading.worker_pool import WorkerPool
from flaxcnn.parallel.strategy import Strategy

# Number of batches that are kept ready on the devices.
_AHEAD = 2


class StreamingLoader:
    """Loads batches that worker processes decode; see `flaxcnn.data.loading.loader.Loader`."""

    assemble = staticmethod(take_whole)

    def __init__(
        self,
        name: str,
        dataset: ImageDataset,
        strategy: Strategy,
        bad_images: BadImages,
        pool: WorkerPool,
        rows: int,
    ):
        """Creates the loader. Nothing is decoded yet.

        Args:
          name: name of the split in the pool.
          dataset: the split.
          strategy: strategy whose devices get the batches.
          bad_images: records images that cannot be read.
          pool: the worker processes.
          rows: number of rows of a batch in this process.
        """
        self.dataset, self.bad_images = dataset, bad_images
        self.resident: Arrays = {}
        self._name, self._strategy, self._pool, self._rows = name, strategy, pool, rows

    def batches(self, indices: Iterator[BatchIndices]) -> Prefetcher:
        """Returns a `DeviceBatch` for each item of `indices`, in order."""
        alone = jax.process_count() == 1
        masked_batch = None if alone else lambda: DeviceBatch(self.masked_inputs(self._rows))
        return Prefetcher(self._on_devices(indices), _AHEAD, masked_batch)

    def masked_inputs(self, *shape: int) -> Arrays:
        """Returns fully masked inputs. `shape` is (rows,), the number of rows in this process."""
        (rows,) = shape
        indices = BatchIndices.masked(rows)
        images, labels = np.zeros((rows, *self.dataset.image_shape), np.uint8), np.zeros(rows, np.int32)
        batch = {"image": images, "label": labels, "mask": indices.mask, "sample_id": indices.sample_ids}
        return self._strategy.shard(batch)

    def count_bad(self) -> int:
        """Returns the number of images so far that could not be read in any process. All processes must call it."""
        own = len(self.bad_images.reasons)
        if jax.process_count() == 1:
            return own
        return int(multihost_utils.process_allgather(np.array(own, np.int32)).sum())

    def _on_devices(self, indices: Iterator[BatchIndices]) -> Generator[DeviceBatch, None, None]:
        batches = self._pool.batches(self._name, indices, self.bad_images)
        with contextlib.closing(batches):
            for batch in batches:
                if self._strategy.device.platform == "cpu":  # JAX would not copy the memory, which is reused
                    batch = jax.tree.map(np.copy, batch)
                yield DeviceBatch(jax.block_until_ready(self._strategy.shard(batch)))
