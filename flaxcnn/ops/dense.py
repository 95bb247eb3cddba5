"""The matrix product of a batch with a kernel, as in fully connected layers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import batching

from flaxcnn.ops import onednn_dense
from flaxcnn.ops.multilinear import Multilinear
from flaxcnn.ops.vmap_rules import bind_rows, is_sharded, mapped_by_stock

Array = jax.Array
INPUT, KERNEL, OUTPUT = "input", "kernel", "output"


def dense(x: Array, kernel: Array) -> Array:
    """Returns `x @ kernel` (B, N) for x (B, C) and a kernel (C, N).

    It behaves like `jax.numpy.matmul` under all transformations and shardings. Only the order of summation differs.

    Raises:
      ValueError: an argument does not have two axes.
    """
    if x.ndim != 2 or kernel.ndim != 2:
        raise ValueError(f"dense takes x (B, C) and a kernel (C, N), got {x.shape} and {kernel.shape}")
    return _dense(x, kernel)


def _by_operations(result: str, shape: tuple[int, ...], *operands: Array) -> Array:
    """Returns the product, or the gradient with respect to input or kernel, by JAX's operations."""
    del shape
    first, second = operands
    if result == INPUT:  # the operands are the kernel and the gradient with respect to the output
        return second @ first.T
    return first.T @ second if result == KERNEL else first @ second


_dense = Multilinear(
    "flaxcnn_dense",
    (INPUT, KERNEL, OUTPUT),
    stock=jnp.matmul,
    default=_by_operations,
    cpu=_by_operations,
    engine=onednn_dense.dense,
)


def _mapped(
    operands: Sequence[Array], axes: Sequence[int | None], *, result: str, shape: tuple[int, ...], **params: Any
) -> tuple[Array, int]:
    """Batching rule: folds the mapped axis into the rows, or maps JAX's own product if the kernel is mapped."""
    given = [name for name in (INPUT, KERNEL, OUTPUT) if name != result]
    if result == KERNEL or axes[given.index(KERNEL)] is not None or is_sharded(operands, axes):
        return mapped_by_stock(_dense.by_stock, operands, axes, result=result, shape=shape, **params)
    return bind_rows(_dense.primitive, operands, axes, result=result, shape=shape, **params)


batching.primitive_batchers[_dense.primitive] = _mapped
