"""Where the windows of a convolution lie, and JAX's own convolution, as it is and without its stride."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
# Pixels before and after, of the rows and of the columns.
Paddings = tuple[tuple[int, int], tuple[int, int]]


class Geometry(NamedTuple):
    """What a convolution needs besides its arrays.

    Attributes:
      strides: of the rows and of the columns.
      paddings: zeros before and after the rows and the columns.
      groups: groups of channels that do not see each other.
      precision: of the products on accelerators.
    """

    strides: tuple[int, int]
    paddings: Paddings
    groups: int = 1
    precision: Any = None

    def is_pointwise(self, kernel_shape: tuple[int, ...]) -> bool:
        """Returns whether each output sees one pixel."""
        return kernel_shape[:2] == (1, 1) and not any(map(any, self.paddings))


def stock(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves maps (B, H, W, C) with a kernel (height, width, C / groups, features) as JAX does."""
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
    """Returns the gradient with respect to the argument, of this shape, of a linear function."""
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, gradient.dtype))(gradient)[0]


def unstrided(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves to the same result at stride 1: the pixels under a stride become channels of one. Has no groups."""
    channels, features = kernel.shape[2:]
    paddings = []
    for axis, stride in enumerate(geometry.strides):
        (low, high), size, window = geometry.paddings[axis], x.shape[1 + axis], kernel.shape[axis]
        # Zeros before the kernel, so that the padding too is of whole blocks, and after kernel and pixels.
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
