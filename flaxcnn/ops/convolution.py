"""Convolution of NHWC feature maps, with an implementation for each platform."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import batching

from flaxcnn.ops import onednn_convolution
from flaxcnn.ops.geometry import Geometry
from flaxcnn.ops.lax_convolution import by_accelerator, stock
from flaxcnn.ops.multilinear import Multilinear, transposed
from flaxcnn.ops.vmap_rules import bind_rows, is_sharded, mapped_by_stock, mapped_size

Array = jax.Array
INPUT, KERNEL, OUTPUT = "input", "kernel", "output"


def convolution(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """Convolution that can replace `jax.lax.conv_general_dilated` in `flax.linen.Conv`, with the same arguments.

    It also behaves like `conv_general_dilated` under all transformations and shardings. Only the order of summation
    differs.

    Args:
      x: feature maps (B, H, W, C).
      kernel: (height, width, C / groups, features).
      window_strides: distance between windows along rows and columns.
      padding: numbers of zeros before and after the rows, and before and after the columns.
      lhs_dilation, rhs_dilation: must be 1; dilation is not supported.
      dimension_numbers: ignored; the layout is NHWC for images and HWIO for the kernel, as in linen.
      feature_group_count: number of channel groups.
      precision: precision of the products on accelerators, see `jax.lax.Precision`.

    Returns:
      Feature maps (B, H', W', features).

    Raises:
      ValueError: `x` does not have four axes, or a dilation is not 1.
    """
    if x.ndim != 4 or {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} != {1}:
        raise ValueError(f"convolution takes (batch, height, width, channels), undilated, got {x.shape}")
    (down, right), ((top, bottom), (before, after)) = window_strides, padding
    geometry = Geometry((down, right), ((top, bottom), (before, after)), feature_group_count, precision)
    return _convolution(x, kernel, geometry=geometry)


def _derived(
    result: str,
    shape: tuple[int, ...],
    *operands: Array,
    geometry: Geometry,
    convolve: Callable[[Array, Array, Geometry], Array] = by_accelerator,
) -> Array:
    """Returns the output of a convolution, or the gradient with respect to input or kernel, by transposition."""
    if result == OUTPUT:
        x, kernel = operands
        return convolve(x, kernel, geometry)
    other, gradient = operands
    if result == INPUT:
        return transposed(lambda x: convolve(x, other, geometry), shape, gradient)
    return transposed(lambda kernel: convolve(other, kernel, geometry), shape, gradient)


_convolution = Multilinear(
    "flaxcnn_convolution",
    (INPUT, KERNEL, OUTPUT),
    stock=stock,
    default=_derived,
    cpu=functools.partial(_derived, convolve=stock),
    engine=onednn_convolution.convolution,
)


def _mapped(
    operands: Sequence[Array],
    axes: Sequence[int | None],
    *,
    result: str,
    shape: tuple[int, ...],
    geometry: Geometry,
    **params: Any,
) -> tuple[Array, int]:
    """Batching rule: folds the mapped axis into the batch, or into the groups if the kernel is mapped."""
    fields = {"result": result, "geometry": geometry, **params}
    if is_sharded(operands, axes):
        return mapped_by_stock(_convolution.by_stock, operands, axes, shape=shape, **fields)
    size = mapped_size(operands, axes)
    given = [name for name in (INPUT, KERNEL, OUTPUT) if name != result]
    if result != KERNEL and axes[given.index(KERNEL)] is None:
        return bind_rows(_convolution.primitive, operands, axes, shape=shape, **fields)
    if not size:
        return jnp.zeros((0, *shape), operands[0].dtype), 0
    # Several kernels that share one input need no groups: their output features are concatenated.
    has_one_input = geometry.groups == 1 and result != INPUT and axes[0] is None
    if not has_one_input:
        fields["geometry"] = geometry._replace(groups=geometry.groups * size)
    folded = []
    for name, x, axis in zip(given, operands, axes, strict=True):
        if axis is None and not (name == INPUT and has_one_input):
            x, axis = jnp.broadcast_to(x[..., None, :], (*x.shape[:3], size, x.shape[3])), 3
        if axis is not None:
            x = jnp.moveaxis(x, axis, 3)
            x = x.reshape(*x.shape[:3], size * x.shape[4])
        folded.append(x)
    y = _convolution.primitive.bind(*folded, shape=(*shape[:3], size * shape[3]), **fields)
    return y.reshape(*shape[:3], size, shape[3]), 3


batching.primitive_batchers[_convolution.primitive] = _mapped
