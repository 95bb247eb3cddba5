"""Metrics of a step: sums over the examples of a batch whose mask is 1, and over devices."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from flaxcnn.training.batch_parts import AxisName

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]


def check_batch(batch: Batch) -> None:
    """Checks, while a step is traced, that a batch has the documented shapes and dtypes."""
    chex.assert_rank([batch["image"], batch["label"], batch["mask"]], [4, 1, 1])
    chex.assert_equal_shape_prefix([batch["image"], batch["label"], batch["mask"]], 1)
    chex.assert_type([batch["image"], batch["label"]], [jnp.uint8, jnp.int32])


def example_sums(logits: Array, losses: Array, labels: Array, mask: Array) -> Metrics:
    """Returns the sum of the losses, the number of correctly classified examples, and the number of examples."""
    counted = mask.astype(jnp.int32)
    return {
        "loss": (losses * mask).sum(),
        "correct": ((logits.argmax(axis=-1) == labels) * counted).sum(dtype=jnp.int32),
        "count": counted.sum(dtype=jnp.int32),
    }


def sum_over_devices(axis_name: AxisName | None, tree: Any) -> Any:
    """Sums arrays over the device axis, if there is one."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
