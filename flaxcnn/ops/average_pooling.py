"""Average pooling of NHWC feature maps: over windows, over all pixels, over adaptive bins."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.ops import onednn_convolution
from flaxcnn.ops.geometry import Geometry, Paddings
from flaxcnn.ops.multilinear import Multilinear, transposed
from flaxcnn.ops.pooling_windows import pooling_paddings, window_slices

Array = jax.Array
# On CPUs, windows of at most this many pixels are summed as one slice of the feature map per pixel of the window.
_MAX_UNROLLED = 64
# Number of float32 values in a vector register of a CPU.
_VECTOR = 8


def average_pool(
    x: Array,
    window: int,
    stride: int,
    *,
    padding: int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Averages over square windows; arguments and shapes are those of `max_pool`.

    Padding counts as zeros in the average unless `count_include_pad` is False. As in torch's `avg_pool2d`, pixels
    that ceil mode adds at the end never count.
    """
    paddings = pooling_paddings(x, window, stride, padding, ceil_mode)
    # In half precision each addition would be rounded: an error of 1 % for 4x4 windows and of 20 % for 25x25.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = _sum(wide, window, stride, paddings)
    if not ceil_mode and (count_include_pad or not padding):  # window**2 pixels count in every window
        return (total / window**2).astype(x.dtype)

    def counts(size: int, windows: int) -> np.ndarray:
        start = np.arange(windows) * stride - padding
        low, high = (-padding, size + padding) if count_include_pad else (0, size)
        return np.minimum(start + window, high) - np.maximum(start, low)

    rows, columns = (counts(size, windows) for size, windows in zip(x.shape[1:3], total.shape[1:3], strict=True))
    area = (rows[:, None] * columns)[None, :, :, None]
    return (total / area.astype(wide.dtype)).astype(x.dtype)


def _sum(x: Array, window: int, stride: int, paddings: Paddings) -> Array:
    if window != stride or any(map(any, paddings)):
        return nn.pooling.pool(x, 0.0, jax.lax.add, (window, window), (stride, stride), paddings)
    return _sum_side_by_side(x, window=window)


def _sum_over_axes(x: Array, window: int) -> Array:
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(batch, rows, window, columns, window, channels).sum(axis=(2, 4))


def _stock_sum(x: Array, window: int) -> Array:
    return nn.pooling.pool(x, 0.0, jax.lax.add, (window, window), (window, window), ((0, 0), (0, 0)))


def _summed(result: str, shape: tuple[int, ...], x: Array, window: int) -> Array:
    if result == "output":
        return _sum_over_axes(x, window)
    return transposed(lambda x: _sum_over_axes(x, window), shape, x)


def _summed_on_cpu(result: str, shape: tuple[int, ...], x: Array, window: int) -> Array:
    # XLA:CPU gives a sum over axes to a library, together with the computation of its operand, convolutions
    # included. The gradient of a sum over axes, however, takes a fraction of the time of the gradient of a sum of
    # slices.
    if result == "output" and window**2 <= _MAX_UNROLLED:
        # The barrier materializes x, because an activation that is fused into the sum would not be vectorized.
        slices = window_slices(jax.lax.optimization_barrier(x), (window, window), window)
        return functools.reduce(jax.lax.add, slices)
    return _summed(result, shape, x, window)


def _summed_by_onednn(result: str, shape: tuple[int, ...], x: Array, window: int) -> Array | None:
    """Computes the sums by oneDNN as a depthwise convolution if there are few channels; otherwise returns None.

    XLA fuses a preceding activation into the sum and computes it pixel by pixel, vectorized over the channels. A
    library call cannot be fused, so XLA computes the activation of all pixels first.
    """
    channels = x.shape[3]
    if channels >= _VECTOR:
        return None
    kernel = jnp.ones((window, window, 1, channels), x.dtype)
    geometry = Geometry((window, window), ((0, 0), (0, 0)), groups=channels)
    operands = (x, kernel) if result == "output" else (kernel, x)
    return onednn_convolution.convolution(result, shape, *operands, geometry=geometry)


_sum_side_by_side = Multilinear(
    "flaxcnn_window_sum",
    ("input", "output"),
    stock=_stock_sum,
    default=_summed,
    cpu=_summed_on_cpu,
    engine=_summed_by_onednn,
)


def global_average_pool(x: Array, *, keepdims: bool = False) -> Array:
    """Averages over all pixels of each channel.

    Args:
      x: feature maps (B, H, W, C).
      keepdims: whether the result keeps the axes of the pixels, with size 1.

    Returns:
      (B, C) or (B, 1, 1, C).
    """
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.result_type(float))
    result = _mean(x)
    return result[:, None, None] if keepdims else result


def _stock_mean(x: Array) -> Array:
    return x.mean(axis=(1, 2))


def _averaged(result: str, shape: tuple[int, ...], x: Array) -> Array:
    return _stock_mean(x) if result == "output" else transposed(_stock_mean, shape, x)


def _averaged_on_cpu(result: str, shape: tuple[int, ...], x: Array) -> Array:
    # A product with a vector instead of a sum over axes, which XLA gives to a library, see `_summed_on_cpu`. For
    # half precision, `mean` itself sums in float32.
    if result != "output" or x.dtype not in (jnp.float32, jnp.float64):
        return _averaged(result, shape, x)
    batch, height, width, channels = x.shape
    weights = jnp.full((batch, height * width), 1 / (height * width), x.dtype)
    x = x.reshape(batch, height * width, channels)
    return jax.lax.dot_general(weights, x, (((1,), (1,)), ((0,), (0,))))


_mean = Multilinear("flaxcnn_mean", ("input", "output"), stock=_stock_mean, default=_averaged, cpu=_averaged_on_cpu)


def adaptive_average_pool(x: Array, output_size: tuple[int, int]) -> Array:
    """Averages over a given number of bins along the rows and columns, as torch's `AdaptiveAvgPool2d` does.

    Along an axis of n pixels, bin i of m covers the pixels from floor(i n / m) up to, but not including,
    ceil((i + 1) n / m). Bins overlap if n is not a multiple of m, and some are equal if n is smaller than m.

    Args:
      x: feature maps (B, H, W, C).
      output_size: height and width of the result.

    Returns:
      (B, *output_size, C); `x` itself if it has that size already.
    """
    if x.shape[1:3] == tuple(output_size):
        return x
    dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, bins in zip((1, 2), output_size, strict=True):
        size = x.shape[axis]
        index = np.arange(bins)
        start, end = index * size // bins, -(-(index + 1) * size // bins)
        pixel = np.arange(size)
        inside = jnp.asarray((pixel >= start[:, None]) & (pixel < end[:, None]), x.dtype)
        # At default precision, accelerators would round the values to the format of their matrix units.
        x = jnp.moveaxis(jnp.tensordot(inside, x, (1, axis), precision=jax.lax.Precision.HIGHEST), 0, axis)
        shape = [bins if a == axis else 1 for a in range(4)]
        x = x / jnp.asarray((end - start).reshape(shape), x.dtype)
    return x.astype(dtype)
