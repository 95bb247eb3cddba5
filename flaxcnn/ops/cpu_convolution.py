"""Convolution of NHWC maps by the ways that XLA:CPU is quick at.

Left out on purpose, because they were slower: all windows copied out (im2col) for kernels of 3x3 and more, and
Winograd's transformation.
"""

import math
import os
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.ops.geometry import Geometry, framed, stock, transposed, unstrided

Array = jax.Array

# Grouped convolutions are computed for so many input channels at a time, as dense ones whose kernel is zero between
# groups: narrower ones leave the matrix units idle, wider ones multiply more zeros.
SUPER_GROUP = 32
# Of windows with up to so many values across, and of up to so many products for each that is asked for, times the
# output channels, whole rows of pixels are taken as channels; forward only with up to so many products a pixel.
ACROSS, PRODUCTS, PRODUCTS_A_PIXEL = 32, 200, 18
# A matrix that a product reads by columns is read slowly if its rows are multiples of 128 numbers long, as what a
# column touches then shares few places of the cache; from this length on a copy with longer rows is quicker.
CROWDED = 512
# Of gradients with more values YNNPACK takes its time over the sum by a kernel, and products of matrices do not.
LARGE = 2**23
# The products for the gradients of a 1x1 convolution copy as many numbers as the kernel has; with more of them for
# each position Eigen's own are quicker.
NUMBERS_A_POSITION = 2**11


def convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Returns (B, H', W', features)."""
    if geometry.groups > 1:
        parts, dense = _super_groups(kernel.shape, geometry.groups), geometry._replace(groups=1)
        outputs = [stock(_channels(x, part.inputs), part.dense(kernel), dense) for part in parts]
        return _placed([(part, 0) for part in outputs], outputs[0].shape[:3])
    if _is_narrow(x.shape, kernel.shape, geometry) and kernel.shape[2] * kernel.shape[3] <= PRODUCTS_A_PIXEL:
        return _by_rows(x, kernel, geometry)
    # Eigen's own 1x1 convolution is quicker than its product, but for one image.
    if (
        geometry.is_pointwise(kernel.shape)
        and geometry.strides == (1, 1)
        and (x.shape[0] == 1 or not _left_to_eigen())
    ):
        return _product(x, kernel[0, 0])
    return stock(x, kernel, geometry)


def input_gradient(shape: tuple[int, ...], kernel: Array, gradient: Array, geometry: Geometry) -> Array:
    """Returns the gradient with respect to the input, of this shape, given that of the output."""
    if geometry.groups > 1:
        dense = geometry._replace(groups=1)
        parts = [
            input_gradient(
                (*shape[:3], part.inputs[1] - part.inputs[0]),
                part.dense(kernel),
                _channels(gradient, part.outputs),
                dense,
            )
            for part in _super_groups(kernel.shape, geometry.groups)
        ]
        return _placed([(part, 0) for part in parts], shape[:3])
    if _is_narrow(shape, kernel.shape, geometry):
        return _by_rows_transposed(shape, kernel, gradient, geometry)
    if not _is_product(kernel.shape, gradient, geometry):
        # Between the values of a strided gradient XLA's own sees zeros, and takes its time over each of them; that
        # costs more than the zeros of the kernel here, unless there are many channels.
        convolve = unstrided if min(geometry.strides) > 1 and kernel.shape[2] <= SUPER_GROUP else stock
        return transposed(lambda x: convolve(x, kernel, geometry), shape, gradient)
    # Transposed in memory, because within the product it would be read by columns.
    product = _product(gradient, jax.lax.optimization_barrier(kernel[0, 0].T))
    config = [(0, 0, 0)] * 4
    for axis, stride in enumerate(geometry.strides, 1):
        config[axis] = (0, shape[axis] - (product.shape[axis] - 1) * stride - 1, stride - 1)
    return jax.lax.pad(product, jnp.zeros((), product.dtype), config)


def kernel_gradient(x: Array, gradient: Array, shape: tuple[int, ...], geometry: Geometry) -> Array:
    """Returns the gradient with respect to the kernel, of this shape, given that of the output."""
    if geometry.groups > 1:
        parts, dense = _super_groups(shape, geometry.groups), geometry._replace(groups=1)
        products = [
            kernel_gradient(_channels(x, part.inputs), _channels(gradient, part.outputs), part.dense_shape, dense)
            for part in parts
        ]
        return jnp.concatenate(
            [part.diagonal(product) for part, product in zip(parts, products, strict=True)], axis=-1
        )
    if _is_product(shape, gradient, geometry):
        down, right = geometry.strides
        return _summed_product(x[:, ::down, ::right], gradient)[None, None]
    is_plain = geometry.strides == (1, 1) and not _is_narrow(x.shape, shape, geometry)
    if not is_plain or not _is_large(gradient) or _left_to_eigen():
        return transposed(lambda kernel: stock(x, kernel, geometry), shape, gradient)
    height, width, channels, features = shape
    x = framed(x, geometry.paddings)
    if channels > 2 * features:
        # What a window sees of the gradient is less to copy: with the roles changed the gradient comes out turned.
        frame = ((height - 1,) * 2, (width - 1,) * 2)
        return _correlation(framed(gradient, frame), x, (height, width))[::-1, ::-1].swapaxes(2, 3)
    return _correlation(x, gradient, (height, width))


def _is_product(kernel_shape: tuple[int, ...], gradient: Array, geometry: Geometry) -> bool:
    """Returns whether the gradients are those of a 1x1 convolution, and quicker as products of matrices."""
    if not geometry.is_pointwise(kernel_shape):
        return False
    # With a stride Eigen, too, takes its time, over the zeros between the values of the gradient.
    is_rivalled = _left_to_eigen() and geometry.strides == (1, 1) and isinstance(gradient.size, int)
    positions = gradient.size // gradient.shape[3]
    return not (is_rivalled and math.prod(kernel_shape) > NUMBERS_A_POSITION * positions)


def _is_large(gradient: Array) -> bool:
    """Returns whether kernel gradients are quicker as products than by YNNPACK; an open size is not."""
    return isinstance(gradient.size, int) and gradient.size > LARGE


def _left_to_eigen() -> bool:
    """Returns whether this process has Eigen compute convolutions (see `flaxcnn.launch`), and not YNNPACK.

    Eigen is quick at kernel gradients as JAX writes them; YNNPACK takes up to three times as long.
    """
    chosen = re.findall(r"--xla_cpu_experimental_ynn_fusion_type=(\S*)", os.environ.get("XLA_FLAGS", ""))
    return bool(chosen) and "INDIVIDUAL_CONVOLUTION" not in chosen[-1]


def _is_narrow(shape: tuple[int, ...], kernel_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Returns whether whole rows of pixels do better as channels than pixels by themselves.

    One product of matrices then holds more than is asked for, but nothing is done value by value.
    """
    width, channels, features = kernel_shape[1:]
    is_small = width * channels <= ACROSS and shape[2] * features <= PRODUCTS * width
    return geometry.groups == 1 and width > 1 and is_small


def _by_rows(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Returns (B, H', W', features): as many rows as the kernel is high, side by side, times `_row_matrix`."""
    vertical, (left, right) = geometry.paddings
    batch, size, width, channels = x.shape
    rows = framed(x.reshape(batch, size, width * channels, 1), (vertical, (left * channels, right * channels)))
    rows = rows.reshape(*rows.shape[:2], 1, -1)
    height, down = kernel.shape[0], geometry.strides[0]
    count = (rows.shape[1] - height) // down + 1
    span = (count - 1) * down + 1
    seen = _placed([(rows[:, row : row + span : down], 0) for row in range(height)], (batch, count, 1))
    return _product(seen, _row_matrix(width, kernel, geometry)).reshape(batch, count, -1, kernel.shape[3])


def _by_rows_transposed(shape: tuple[int, ...], kernel: Array, gradient: Array, geometry: Geometry) -> Array:
    """Returns the gradient with respect to the input of `_by_rows`, given that of the output."""
    (top, bottom), (left, _) = geometry.paddings
    (batch, size, width, channels), (height, count) = shape, (kernel.shape[0], gradient.shape[1])
    matrix, down = _row_matrix(width, kernel, geometry), geometry.strides[0]
    product = _product(gradient.reshape(batch, count, 1, -1), matrix.T).reshape(batch, count, height, -1)
    unseen, zero = top + size + bottom - height - (count - 1) * down, jnp.zeros((), product.dtype)
    result = sum(
        jax.lax.pad(product[:, :, row], zero, [(0, 0, 0), (row, height - 1 - row + unseen, down - 1), (0, 0, 0)])
        for row in range(height)
    )
    result = result.reshape(batch, top + size + bottom, -1, channels)
    return result[:, top : top + size, left : left + width]


def _row_matrix(width: int, kernel: Array, geometry: Geometry) -> Array:
    """Returns the kernel as a matrix from rows of the framed input to a row of the output.

    Its shape is (height of the kernel * framed width * C, W' * features), with zeros where a place of the output
    does not see a place of the input.
    """
    framed_width, right = width + sum(geometry.paddings[1]), geometry.strides[1]
    columns = (framed_width - kernel.shape[1]) // right + 1
    start = right * np.arange(columns)[:, None]
    seen = np.arange(framed_width)[:, None, None] == start + np.arange(kernel.shape[1])
    matrix = jnp.einsum("hkcf,wok->hwcof", kernel, jnp.asarray(seen, kernel.dtype))
    # By the barrier it is memory, and not computed value by value within the product.
    return jax.lax.optimization_barrier(matrix.reshape(-1, columns * kernel.shape[3]))


def _correlation(x: Array, gradient: Array, window: tuple[int, int]) -> Array:
    """Returns for each place of the window the sum over all positions of input times gradient, (*window, C, F).

    They are products of two matrices whose rows are positions. The columns of the window lie side by side in that
    of the input, the rows in that of either, whichever is less to copy.
    """
    batch, size, _, channels = x.shape
    rows, columns, features = gradient.shape[1:]
    height, width = window
    across = _placed([(x[:, :, place : place + columns], 0) for place in range(width)], (batch, size, columns))
    if height * width * channels + features <= width * channels + height * features:
        seen = [(across[:, place : place + rows], 0) for place in range(height)]
        return _summed_product(_placed(seen, (batch, rows, columns)), gradient).reshape(*window, channels, features)
    gradients = _placed([(gradient, place) for place in range(height)], (batch, size, columns))
    products = _summed_product(across, gradients).reshape(width, channels, height, features)
    return products.transpose(2, 0, 1, 3)


def _summed_product(left: Array, right: Array) -> Array:
    """Maps (..., C) and (..., F) to (C, F)."""
    channels = left.shape[-1]
    left, right = left.reshape(-1, channels), right.reshape(-1, right.shape[-1])
    if channels >= CROWDED and channels % 128 == 0:
        left = jax.lax.optimization_barrier(jnp.pad(left, ((0, 0), (0, 16))))
    return jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())))[:channels]


def _placed(maps: Sequence[tuple[Array, int]], shape: tuple[int, int, int]) -> Array:
    """Puts maps, each from a row on, side by side along the channels of maps of zeros (*shape, C).

    XLA:CPU's own concatenation and padding go value by value.
    """
    if len(maps) == 1 and maps[0][0].shape[:3] == shape:
        return maps[0][0]
    # By the barrier the zeros are memory, and not a condition for each value of the first part.
    channels = sum(part.shape[-1] for part, _ in maps)
    result = jax.lax.optimization_barrier(jnp.zeros((*shape, channels), maps[0][0].dtype))
    channel = 0
    for part, row in maps:
        result = jax.lax.dynamic_update_slice(result, part, (0, row, 0, channel))
        channel += part.shape[-1]
    return result


def _product(x: Array, matrix: Array) -> Array:
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


class _SuperGroup:
    """Neighbouring groups, computed as one."""

    def __init__(self, first: int, last: int, kernel_shape: tuple[int, ...], groups: int):
        self._count, self._window = last - first, kernel_shape[:2]
        self._channels, self._features = kernel_shape[2], kernel_shape[3] // groups
        self.inputs = first * self._channels, last * self._channels
        self.outputs = first * self._features, last * self._features

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """The shape of what `dense` returns."""
        return *self._window, self._count * self._channels, self._count * self._features

    def dense(self, kernel: Array) -> Array:
        """Returns its part of a grouped kernel as a dense one, zero where an input is not of the output's group."""
        part = _channels(kernel, self.outputs)
        part = part.reshape(*self._window, 1, self._channels, self._count, self._features)
        same = jnp.eye(self._count, dtype=bool)[:, None, :, None]
        return jnp.where(same, part, 0).reshape(self.dense_shape)

    def diagonal(self, dense: Array) -> Array:
        """Returns of a dense kernel what lies within groups, as a part of a grouped one."""
        blocks = dense.reshape(*self._window, self._count, self._channels, self._count, self._features)
        within = jnp.stack([blocks[:, :, group, :, group] for group in range(self._count)], axis=3)
        return within.reshape(*self._window, self._channels, self._count * self._features)


def _super_groups(kernel_shape: tuple[int, ...], groups: int) -> list[_SuperGroup]:
    each = max(1, SUPER_GROUP // kernel_shape[2])
    count = math.ceil(groups / each)
    return [
        _SuperGroup(number * each, min(number * each + each, groups), kernel_shape, groups)
        for number in range(count)
    ]


def _channels(x: Array, limits: tuple[int, int]) -> Array:
    """Returns some of the channels, in memory of their own, where a convolution reads them at speed."""
    return jax.lax.optimization_barrier(x[..., limits[0] : limits[1]])
