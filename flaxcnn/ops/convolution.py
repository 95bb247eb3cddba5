"""Convolution of NHWC feature maps, on each platform by the way that is quick there."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import batching

from flaxcnn.ops import onednn_convolution
from flaxcnn.ops.geometry import Geometry, stock, transposed, unstrided
from flaxcnn.ops.primitives import Multilinear, fold_into_rows, is_split, mapped_by_stock, mapped_size

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
    """Convolves as `jax.lax.conv_general_dilated` does, whose arguments it takes; for `flax.linen.Conv`.

    It behaves as that operation under every transformation and placement. What differs is the order of summation.

    Args:
      x: feature maps (B, H, W, C).
      kernel: (height, width, C / groups, features).
      window_strides: of rows and columns.
      padding: zeros before and after rows and columns.
      lhs_dilation, rhs_dilation: 1, as nothing here is dilated.
      dimension_numbers: NHWC and HWIO, as linen has them.
      feature_group_count: groups of channels that do not see each other.
      precision: of the product on accelerators.

    Returns:
      (B, H', W', features).

    Raises:
      ValueError: an input of another rank, or dilation.
    """
    if x.ndim != 4 or {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} != {1}:
        raise ValueError(f"convolution takes maps (batch, height, width, channels) undilated, got {x.shape}")
    (down, right), ((top, bottom), (before, after)) = window_strides, padding
    geometry = Geometry((down, right), ((top, bottom), (before, after)), feature_group_count, precision)
    return _convolution(x, kernel, geometry=geometry)


def by_accelerator(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Folds the pixels under a stride into the channels, if these are few: matrix units take them by eights.

    A 7x7 convolution at stride 2 of 3 channels becomes one of 4x4 at stride 1 of 12 channels.
    """
    if (
        kernel.shape[2] > 4
        or geometry.groups > 1
        or min(geometry.strides) == 1
        or geometry.is_pointwise(kernel.shape)
    ):
        return stock(x, kernel, geometry)
    return unstrided(x, kernel, geometry)


def _derived(
    result: str,
    shape: tuple[int, ...],
    *operands: Array,
    geometry: Geometry,
    convolve: Callable[[Array, Array, Geometry], Array] = by_accelerator,
) -> Array:
    """Returns the output of a convolution, or its gradient with respect to input or kernel, by JAX's transpose."""
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
    """Maps a convolution over an axis: that of more images for one kernel, else that of more groups of channels."""
    fields = {"result": result, "geometry": geometry, **params}
    if is_split(operands, axes):
        return mapped_by_stock(_convolution.by_stock, operands, axes, shape=shape, **fields)
    size = mapped_size(operands, axes)
    given = [name for name in (INPUT, KERNEL, OUTPUT) if name != result]
    if result != KERNEL and axes[given.index(KERNEL)] is None:
        operands = [
            x if axis is None else fold_into_rows([x], [axis], size)[0]
            for x, axis in zip(operands, axes, strict=True)
        ]
        y = _convolution.primitive.bind(*operands, shape=(shape[0] * size, *shape[1:]), **fields)
        return y.reshape(shape[0], size, *shape[1:]), 1
    if not size:
        return jnp.zeros((0, *shape), operands[0].dtype), 0
    # One input for many kernels needs no groups: these have more features.
    is_shared = geometry.groups == 1 and result != INPUT and axes[0] is None
    if not is_shared:
        fields["geometry"] = geometry._replace(groups=geometry.groups * size)
    folded = []
    for name, x, axis in zip(given, operands, axes, strict=True):
        if axis is None and not (name == INPUT and is_shared):
            x, axis = jnp.broadcast_to(x[..., None, :], (*x.shape[:3], size, x.shape[3])), 3
        if axis is not None:
            x = jnp.moveaxis(x, axis, 3)
            x = x.reshape(*x.shape[:3], size * x.shape[4])
        folded.append(x)
    y = _convolution.primitive.bind(*folded, shape=(*shape[:3], size * shape[3]), **fields)
    return y.reshape(*shape[:3], size, shape[3]), 3


batching.primitive_batchers[_convolution.primitive] = _mapped
