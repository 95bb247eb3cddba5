"""The protocol of loaders, which load the batches of a split, and the choice between the two loaders."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax

from flaxcnn.config import DataConfig
from flaxcnn.cores import available_cores
from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.loading.bad_images import BadImages
from flaxcnn.data.loading.batch import Arrays
from flaxcnn.data.loading.in_memory import InMemoryLoader
from flaxcnn.data.loading.prefetch import Prefetcher
from flaxcnn.data.loading.sampler import BatchIndices
from flaxcnn.data.loading.streaming import StreamingLoader
from flaxcnn.data.loading.worker_pool import WorkerPool
from flaxcnn.errors import UserError
from flaxcnn.parallel.strategy import Strategy


class Loader(Protocol):
    """Loads the batches of a split.

    A compiled program takes `resident` and the inputs of a batch, and calls `assemble` to get the batch itself:

        batches = loader.batches(indices)
        program(state, loader.resident, batches.next().inputs)

    Attributes:
      dataset: the split.
      resident: arrays that are replicated on every device during the whole run; empty for a streamed split.
      assemble: `assemble(resident, inputs) -> batch`, called inside compiled programs; see `batch.gather`.
      bad_images: record of the images that could not be read.
    """

    dataset: ImageDataset
    resident: Arrays
    bad_images: BadImages

    @property
    def assemble(self) -> Callable[[Arrays, Arrays], Arrays]: ...  # noqa: D102

    def batches(self, indices: Iterator[BatchIndices]) -> Prefetcher:
        """Returns a `DeviceBatch` for each item of `indices`, in order."""
        ...

    def masked_inputs(self, *shape: int) -> Arrays:
        """Returns fully masked inputs, for example to compile a program with.

        Args:
          *shape: number of rows in this process; for a split in memory, optionally also the number of steps per
            call.
        """
        ...

    def count_bad(self) -> int:
        """Returns the number of images so far that could not be read in any process. All processes must call it."""
        ...


def is_streamed(loading: str, dataset: ImageDataset, limit: int) -> bool:
    """Returns whether a split is streamed, rather than decoded once into the memory of the devices.

    Args:
      loading: "auto", "memory" or "stream".
      dataset: the split.
      limit: maximum size of a split on a device in bytes, see `memory.memory_for_data`.

    Raises:
      UserError: `loading` is "memory", and the split is too large or its crops change from epoch to epoch.
    """
    needed, source = dataset.decoded_bytes, dataset.source
    if loading == "auto":
        return dataset.crop != "stored" or needed > limit
    if loading == "memory" and dataset.crop in ("random", "random_resized"):
        raise UserError(
            f"data.crop {dataset.crop!r} decodes images anew in each epoch; write data.loading 'stream' or 'auto'"
        )
    if loading == "memory" and needed > limit:
        raise UserError(
            f"split {source.split!r} of {source.name} takes {needed / 2**30:.1f} GiB decoded, more than the "
            f"{limit / 2**30:.1f} GiB set aside for data; write data.loading 'stream', or take a part, such as "
            f"'{source.split}[:10%]'"
        )
    return loading == "stream"


@contextlib.contextmanager
def open_loaders(
    config: DataConfig,
    strategy: Strategy,
    datasets: Mapping[str, ImageDataset],
    batch_sizes: Mapping[str, int],
    limit: int,
) -> Iterator[dict[str, Loader]]:
    """Context manager that yields {name of a split: loader}.

    A split that fits into device memory is kept there; others are streamed (see `is_streamed`). All streamed splits
    share one pool of worker processes, which ends when the block exits.

    Args:
      config: the leaves `loading`, `workers` and `bad_images` are used.
      strategy: strategy whose devices get the batches.
      datasets: {name of a split: dataset}.
      batch_sizes: {name of a split: images per batch over all devices}.
      limit: size in bytes of the largest split to keep on a device, see `memory.memory_for_data`.

    Raises:
      UserError: an image cannot be read and must not be skipped, or a dataset is damaged.
    """
    rows = {name: size // jax.process_count() for name, size in batch_sizes.items()}
    streamed = {name: data for name, data in datasets.items() if is_streamed(config.loading, data, limit)}
    with contextlib.ExitStack() as stack:
        pool = None
        if streamed:
            workers = available_cores() if config.workers is None else config.workers
            pool = stack.enter_context(
                WorkerPool(streamed, rows={name: rows[name] for name in streamed}, workers=workers)
            )
        loaders: dict[str, Loader] = {}
        for name, dataset in datasets.items():
            bad_images = BadImages(dataset.source, skip=config.bad_images == "skip")
            if pool is not None and name in streamed:
                loaders[name] = StreamingLoader(name, dataset, strategy, bad_images, pool, rows[name])
            else:
                loaders[name] = InMemoryLoader(dataset, strategy, bad_images)
        yield loaders
