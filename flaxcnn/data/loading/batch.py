"""The input that a loader passes to a compiled step, and its conversion to a batch inside the step."""

from typing import NamedTuple

import jax

Arrays = dict[str, jax.Array]


class DeviceBatch(NamedTuple):
    """Input for one call of a compiled program, which may take several steps.

    Attributes:
      inputs: arrays sharded over the devices, which `gather` or `take_whole` converts to a batch.
      count: number of steps to take.
    """

    inputs: Arrays
    count: int = 1


# The attribute `assemble` of a loader is one of these two functions. The compiled step calls it. Both return the
# per-device batch: image (B, H, W, C) uint8, label (B,) int32, mask (B,) float32, and sample_id (B, 2) int32, the
# epoch and the index of each example.


def gather(resident: Arrays, inputs: Arrays) -> Arrays:
    """Gathers a batch from a split that is kept in the memory of the device.

    Args:
      resident: image, label and mask of the whole split.
      inputs: mask and sample_id of the batch.
    """
    indices = inputs["sample_id"][:, 1]
    return {
        "image": resident["image"][indices],
        "label": resident["label"][indices],
        "mask": resident["mask"][indices] * inputs["mask"],
        "sample_id": inputs["sample_id"],
    }


def take_whole(resident: Arrays, inputs: Arrays) -> Arrays:
    """Returns `inputs`, which is already the batch if the split is streamed. `resident` is not used."""
    del resident
    return inputs
