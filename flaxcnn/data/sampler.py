"""Which examples a step sees: a pure function of (seed, epoch, step, process), with no state to save."""

import functools
from collections.abc import Iterator

import numpy as np


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of all examples in an epoch: a uniform random permutation, (num_examples,) int32.

    It sorts the raw output of the Philox generator keyed by (seed, epoch). NumPy guarantees that stream for all
    time, which it does not do for its own `permutation`.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    return np.argsort(keys, kind="stable").astype(np.int32)


def training_batch(
    seed: int,
    epoch: int,
    step: int,
    *,
    batch_size: int,
    num_examples: int,
    process_index: int = 0,
    process_count: int = 1,
) -> np.ndarray:
    """Returns the example numbers of one process's share of a global batch, (batch_size / processes,) int32.

    Args:
      seed: of the run.
      epoch: counted from 0; each epoch visits every example at most once, in a new order.
      step: counted from 0 within the epoch, below `num_examples // batch_size`. The examples left over at the
        end of an epoch are not seen in it, and are others in the next.
      batch_size: of the global batch.
      num_examples: in the split.
      process_index: which share.
      process_count: number of shares; it must divide `batch_size`.
    """
    share = _share(batch_size, process_count)
    start = step * batch_size + process_index * share
    return epoch_order(seed, epoch, num_examples)[start : start + share]


def evaluation_batches(
    num_examples: int, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields one process's share of (example numbers, mask) in order, all of one length, int32 and float32.

    The mask is 0 where the last batch is filled up, with example 0. The arguments are those of `training_batch`.
    """
    share = _share(batch_size, process_count)
    for start in range(process_index * share, process_index * share + num_examples, batch_size):
        positions = np.arange(start, start + share)
        mask = positions < num_examples
        yield np.where(mask, positions, 0).astype(np.int32), mask.astype(np.float32)


def _share(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise ValueError(f"batch size {batch_size} is not divisible by {process_count} processes")
    return batch_size // process_count
