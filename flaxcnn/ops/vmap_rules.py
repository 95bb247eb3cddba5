"""Rules for `vmap` of primitives: the mapped axis is folded into the batch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching

from flaxcnn.ops.primitives import explicit_sharding

Array = jax.Array


def fold_into_rows(operands: Sequence[Array], axes: Sequence[int | None], size: int) -> list[Array]:
    """Returns operands with the mapped axis folded into the first axis; unmapped operands are repeated."""
    folded = []
    for operand, axis in zip(operands, axes, strict=True):
        if axis is None:
            operand = jnp.broadcast_to(operand[:, None], (operand.shape[0], size, *operand.shape[1:]))
        else:
            operand = jnp.moveaxis(operand, axis, 1)
        folded.append(operand.reshape(operand.shape[0] * size, *operand.shape[2:]))
    return folded


def bind_rows(
    new: Primitive, operands: Sequence[Array], axes: Sequence[int | None], *, shape: tuple[int, ...], **params: Any
) -> tuple[Array, int]:
    """Maps a primitive by merging the mapped axis into the batch; operands without that axis, as a kernel, stay."""
    size = mapped_size(operands, axes)
    rows = [
        x if axis is None else fold_into_rows([x], [axis], size)[0] for x, axis in zip(operands, axes, strict=True)
    ]
    y = new.bind(*rows, shape=(shape[0] * size, *shape[1:]), **params)
    return y.reshape(shape[0], size, *shape[1:]), 1


def map_over_rows(new: Primitive, stock: Callable[..., Array]) -> None:
    """Registers the batching rule of a primitive whose operands and result all have the batch as their first axis.

    `vmap` merges the mapped axis into the batch axis and calls the primitive once. Only if explicit sharding shards
    the mapped axis, it maps `stock` instead.

    Args:
      new: the primitive.
      stock: the same computation by JAX's operations, `stock(*operands, **params)`.
    """

    def rule(operands: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
        if is_sharded(operands, axes):
            return mapped_by_stock(stock, operands, axes, **params)
        size, rows = mapped_size(operands, axes), operands[0].shape[axes[0] == 0]
        if shape := params.get("shape"):
            params["shape"] = (shape[0] * size, *shape[1:])
        result = new.bind(*fold_into_rows(operands, axes, size), **params)
        return result.reshape(rows, size, *result.shape[1:]), 1

    batching.primitive_batchers[new] = rule


def is_sharded(operands: Sequence[Array], axes: Sequence[int | None]) -> bool:
    """Returns whether explicit sharding shards a mapped axis over devices, so that it cannot be folded."""
    placed = ((jax.typeof(x).sharding, axis) for x, axis in zip(operands, axes, strict=True) if axis is not None)
    return any(explicit_sharding(sharding) and sharding.spec[axis] for sharding, axis in placed)


def mapped_by_stock(
    stock: Callable[..., Array], operands: Sequence[Array], axes: Sequence[int | None], **params: Any
) -> tuple[Array, int]:
    """Applies `vmap` of JAX's own operation, which determines the sharding of its result."""
    return jax.vmap(functools.partial(stock, **params), tuple(axes))(*operands), 0


def mapped_size(operands: Sequence[Array], axes: Sequence[int | None]) -> int:
    """Returns the length of the axis that `vmap` maps over."""
    return next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
