"""The indices of the examples in each batch: a pure function of (seed, epoch, step, process), without state."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class BatchIndices:
    """Indices of the examples that this process loads, for one batch or for N consecutive batches of an epoch.

    Attributes:
      epoch: epoch of the batches, counted from 0.
      indices: (B,) int32, indices in the split; for N batches (B, N), one batch per column.
      mask: float32, of the shape of `indices`; 1 for examples, 0 for padding.
      count: number of batches to use. They are the first `count` columns of `indices`.
    """

    epoch: int
    indices: np.ndarray
    mask: np.ndarray
    count: int = 1

    @classmethod
    def masked(cls, *shape: int) -> "BatchIndices":
        """Returns fully masked indices of a given shape."""
        return cls(0, np.zeros(shape, np.int32), np.zeros(shape, np.float32))

    @property
    def sample_ids(self) -> np.ndarray:
        """(epoch, index) of each example, (B, 2) or (B, N, 2) int32."""
        return np.stack([np.full_like(self.indices, self.epoch), self.indices], axis=-1)


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of all examples in an epoch: a uniformly random permutation, (num_examples,) int32.

    It is the permutation that sorts the raw output of the Philox generator with key (seed, epoch). NumPy guarantees
    that this output never changes, which it does not guarantee for its own `permutation`.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    return np.argsort(keys, kind="stable").astype(np.int32)


def training_indices(
    seed: int,
    epoch: int,
    step: int,
    *,
    batch_size: int,
    num_examples: int,
    process_index: int = 0,
    process_count: int = 1,
) -> np.ndarray:
    """Returns the indices of the examples that one process loads for a global batch.

    Args:
      seed: seed of the order of examples.
      epoch: epoch, counted from 0. An epoch uses every example at most once, in an order of its own.
      step: step within the epoch, counted from 0, below `num_examples // batch_size`. The remaining examples at the
        end of the order are not used in this epoch; they differ from epoch to epoch.
      batch_size: size of the global batch.
      num_examples: size of the split.
      process_index: index of this process.
      process_count: number of processes; it must divide `batch_size`.

    Returns:
      (batch_size / process_count,) int32, indices in the split.
    """
    rows = _rows_per_process(batch_size, process_count)
    start = step * batch_size + process_index * rows
    return epoch_order(seed, epoch, num_examples)[start : start + rows]


def evaluation_indices(
    num_examples: int, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[BatchIndices]:
    """Yields the indices of the examples that one process loads for each batch of a split.

    The examples are in the order of the split. All batches have the same length: the last one is padded with
    example 0, which is masked. For the arguments see `training_indices`.
    """
    rows = _rows_per_process(batch_size, process_count)
    for start in range(process_index * rows, process_index * rows + num_examples, batch_size):
        positions = np.arange(start, start + rows)
        mask = positions < num_examples
        yield BatchIndices(0, np.where(mask, positions, 0).astype(np.int32), mask.astype(np.float32))


def _rows_per_process(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise ValueError(f"batch size {batch_size} is not divisible by {process_count} processes")
    return batch_size // process_count
