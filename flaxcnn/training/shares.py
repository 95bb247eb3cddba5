"""A network on one share of a batch: of one device, and on it of one micro-batch.

Two layers must know that they see a share only. Dropout would draw the same numbers on each: here each example has
its own, by its place in the whole batch, however that is split. BatchNorm normalises over its share alone (or with
`bn_axis_name` over all devices): here its running statistics become those of the whole batch.
"""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
from flax import traverse_util

from flaxcnn.ops.primitives import varying_axes

Array = jax.Array
# The momentum of each BatchNorm, by the path of the module.
Momenta = dict[tuple[str, ...], float]
# Of the devices: the name of an axis of `jax.shard_map`, `jax.pmap` or `jax.vmap`, or of several.
AxisName = str | tuple[str, ...]


def apply_to_share(
    model: nn.Module, variables: Mapping[str, Any], images: Array, *, positions: Array, dropout_key: Array
) -> tuple[Array, dict[str, Any], Momenta]:
    """Applies a network in training.

    Args:
      model: the network.
      variables: its parameters and running statistics.
      images: (B, H, W, C), its input.
      positions: (B,) int32, the place of each image in the whole batch. Each draws its dropout masks from
        `dropout_key` and this place.
      dropout_key: one for the whole batch.

    Returns:
      Logits, the updated collections `batch_stats` and `aux_logits`, and the momentum of each BatchNorm.
    """
    momenta: Momenta = {}

    def intercept(next_function, arguments, keywords, context):
        module = context.module
        if isinstance(module, nn.BatchNorm):
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


def as_own(tree: Any, axis_name: AxisName | None) -> Any:
    """Marks what is alike on all devices as each device's own, where `jax.shard_map` keeps account of that."""
    if axis_name is None:
        return tree
    axes = varying_axes(jax.lax.axis_index(axis_name))
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, tuple(axes - varying_axes(leaf)), to="varying"), tree)


def fold_in_each(key: Array, positions: Array) -> Array:
    """Returns a key for each position, (B,)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def merge_statistics(batch_stats: Any, momenta: Momenta, axis_name: AxisName | None) -> Any:
    """Returns the running statistics of a whole batch from those that its shares arrived at.

    With momentum m, a share of mean b and variance v has moved the running ones to m M + (1 - m) b and
    m V + (1 - m) v. All shares are of one size, so the mean of the whole batch is the mean of the b, and its
    variance the mean of the v plus the variance of the b; by these the running ones move.

    Args:
      batch_stats: running statistics after a step, each with a first axis of micro-batches.
      momenta: by the path of the module; what has none is averaged as it is.
      axis_name: of the devices, or None.
    """

    def mean(values: Array) -> Array:
        values = values.mean(axis=0)
        return values if axis_name is None else jax.lax.pmean(values, axis_name)

    shares: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(batch_stats)
    merged = {path: mean(values) for path, values in shares.items()}
    for path, momentum in momenta.items():
        center, spread = (*path, "mean"), (*path, "var")
        if spread in shares and momentum < 1:
            # What the running means differ by is (1 - m) times what the means of the batches differ by.
            merged[spread] += mean((shares[center] - merged[center][None]) ** 2) / (1 - momentum)
    return traverse_util.unflatten_dict(merged)
