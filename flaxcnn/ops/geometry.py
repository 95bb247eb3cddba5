"""Strides, paddings and groups of a convolution; convolution by JAX's operation, and its rewriting to stride 1."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
# Numbers of pixels that are added before and after the rows, and before and after the columns.
Paddings = tuple[tuple[int, int], tuple[int, int]]


class Geometry(NamedTuple):
    """Strides, paddings, groups and precision of a convolution.

    Attributes:
      strides: distance between windows along rows and columns, in pixels.
      paddings: numbers of zeros before and after the rows, and before and after the columns.
      groups: number of channel groups.
      precision: precision of the products on accelerators, see `jax.lax.Precision`.
    """

    strides: tuple[int, int]
    paddings: Paddings
    groups: int = 1
    precision: Any = None

    def is_pointwise(self, kernel_shape: tuple[int, ...]) -> bool:
        """Returns whether each output pixel depends on a single input pixel."""
        return kernel_shape[:2] == (1, 1) and not any(map(any, self.paddings))


def stock(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves (B, H, W, C) with a kernel (height, width, C / groups, features) by `conv_general_dilated`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.paddings,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def transposed(linear: Callable[[Array], Array], shape: tuple[int, ...], gradient: Array) -> Array:
    """Applies the transpose of a linear function to a gradient.

    Args:
      linear: linear function of one array.
      shape: shape of that array.
      gradient: gradient with respect to the result of the function.

    Returns:
      The gradient with respect to the argument of the function: an array of shape `shape`.
    """
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, gradient.dtype))(gradient)[0]


def unstrided(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Computes a strided convolution as one of stride 1, by moving the pixels within a stride into channels.

    Arguments and result are those of `stock`. Groups are not supported.
    """
    channels, features = kernel.shape[2:]
    paddings = []
    for axis, stride in enumerate(geometry.strides):
        (low, high), size, window = geometry.paddings[axis], x.shape[1 + axis], kernel.shape[axis]
        # A block has as many pixels as the stride. Zeros before the kernel make the padding a whole number of
        # blocks. Zeros after the kernel and after the image do the same for their lengths.
        before = -low % stride
        after = -(before + window) % stride
        kernel = _padded(kernel, axis, (before, after))
        blocks = (before + window + after) // stride
        windows = (low + size + high - window) // stride + 1
        x = _padded(x, 1 + axis, (0, -size % stride))
        first = (low + before) // stride
        paddings.append((first, windows - 1 + blocks - first - x.shape[1 + axis] // stride))
    down, right = geometry.strides
    x = x.reshape(x.shape[0], x.shape[1] // down, down, x.shape[2] // right, right, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:2], x.shape[3], down * right * channels)
    kernel = kernel.reshape(kernel.shape[0] // down, down, kernel.shape[1] // right, right, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(kernel.shape[0], kernel.shape[2], -1, features)
    return stock(x, kernel, Geometry((1, 1), tuple(paddings), precision=geometry.precision))


def _padded(x: Array, axis: int, both: tuple[int, int]) -> Array:
    return jnp.pad(x, [both if each == axis else (0, 0) for each in range(x.ndim)])
