"""Applies a network to a part of the global batch: the per-device batch, or one of its micro-batches.

Two layers need care. Dropout would draw the same masks for each part; here the mask of each example depends on its
position in the global batch. BatchNorm normalizes over its part of the batch (with `bn_axis_name`, over the parts
of all devices); its running statistics are merged into those of the global batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
from flax import traverse_util

from flaxcnn.ops.varying_axes import varying_axes
from flaxcnn.training.finetune import matches

Array = jax.Array
# Momentum of each BatchNorm, by module path.
Momenta = dict[tuple[str, ...], float]
# Name of the device axis of `jax.shard_map`, `jax.pmap` or `jax.vmap`, or names of several axes.
AxisName = str | tuple[str, ...]


def apply_to_part(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    *,
    positions: Array,
    dropout_key: Array,
    kept_norms: Sequence[str] = (),
) -> tuple[Array, dict[str, Any], Momenta]:
    """Applies a network to a part of the global batch, in training mode.

    Args:
      model: the network.
      variables: collections "params" and "batch_stats".
      images: model inputs (B, H, W, C).
      positions: (B,) int32, position of each image in the global batch. The dropout masks of an image depend on
        `dropout_key` and its position.
      dropout_key: PRNG key, equal for all parts of the global batch.
      kept_norms: patterns of the BatchNorm layers that normalize with their running statistics, see
        `flaxcnn.training.finetune.select`.

    Returns:
      Logits, the updated collections `batch_stats` and `aux_logits`, and the momentum of each BatchNorm that
      updates its running statistics.
    """
    momenta: Momenta = {}

    def intercept(next_function, arguments, keywords, context):
        module = context.module
        if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
            if matches(module.path, kept_norms):
                # Whether the network sets the attribute or passes the argument, the other one must be None.
                object.__setattr__(module, "use_running_average", None)
                return next_function(arguments[0], **{**keywords, "use_running_average": True})
            momenta[module.path] = module.momentum
        is_call = isinstance(module, nn.Dropout) and context.method_name == "__call__" and "rng" not in keywords
        if not is_call or module.rate == 0:
            return next_function(*arguments, **keywords)
        inputs, *others = arguments
        if inputs.shape[0] != positions.shape[0]:
            path = "/".join(module.path)
            raise ValueError(f"dropout {path} takes {inputs.shape}, whose first axis is not that of the batch")
        keys = fold_in_each(module.make_rng(module.rng_collection), positions)
        return jax.vmap(lambda x, key: next_function(x[None], *others, rng=key, **keywords)[0])(inputs, keys)

    with nn.intercept_methods(intercept):
        logits, updated = model.apply(
            variables, images, train=True, mutable=["batch_stats", "aux_logits"], rngs={"dropout": dropout_key}
        )
    return cast(Array, logits), cast(dict[str, Any], updated), momenta


def as_per_device(tree: Any, axis_name: AxisName | None) -> Any:
    """Marks replicated arrays as varying over devices, so that JAX does not sum their gradients over devices."""
    if axis_name is None:
        return tree
    axes = varying_axes(jax.lax.axis_index(axis_name))
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, tuple(axes - varying_axes(leaf)), to="varying"), tree)


def fold_in_each(key: Array, positions: Array) -> Array:
    """Returns one key per position (B,)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def merge_statistics(batch_stats: Any, momenta: Momenta, axis_name: AxisName | None) -> Any:
    """Merges the running statistics that the parts of a global batch computed into those of the global batch.

    Let M and V be the running mean and variance before the step, and m the momentum. A part of the batch with mean
    b and variance v updates them to m M + (1 - m) b and m V + (1 - m) v. All parts have equal sizes. The mean of
    the global batch is therefore the average of b over the parts, and its variance is the average of v plus the
    variance of b.

    Args:
      batch_stats: updated running statistics, each with a leading axis of micro-batches.
      momenta: momentum of each BatchNorm, by module path; other statistics are averaged.
      axis_name: name of the device axis, or None.

    Returns:
      The running statistics, without the axis of micro-batches and equal on all devices.
    """

    def mean(values: Array) -> Array:
        values = values.mean(axis=0)
        return values if axis_name is None else jax.lax.pmean(values, axis_name)

    parts: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(batch_stats)
    merged = {path: mean(values) for path, values in parts.items()}
    for path, momentum in momenta.items():
        center, spread = (*path, "mean"), (*path, "var")
        if spread in parts and momentum < 1:
            # The running means of two parts differ by (1 - m) times the difference of the means of the parts.
            merged[spread] += mean((parts[center] - merged[center][None]) ** 2) / (1 - momentum)
    return traverse_util.unflatten_dict(merged)
