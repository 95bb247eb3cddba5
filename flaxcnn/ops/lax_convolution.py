"""Convolution by JAX's operation: as it is, and as one of stride 1 for accelerators."""

import jax
import jax.numpy as jnp

from flaxcnn.ops.geometry import Geometry

Array = jax.Array


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


def by_accelerator(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves on an accelerator; for few channels and a stride above 1, by a convolution of stride 1.

    The matrix units of accelerators process channels in multiples of eight. `unstrided` moves the pixels within a
    stride into channels: a 7x7 convolution of 3 channels at stride 2 becomes a 4x4 convolution of 12 channels at
    stride 1.
    """
    if (
        kernel.shape[2] > 4
        or geometry.groups > 1
        or min(geometry.strides) == 1
        or geometry.is_pointwise(kernel.shape)
    ):
        return stock(x, kernel, geometry)
    return unstrided(x, kernel, geometry)


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
