"""Pooling of NHWC maps with torch's geometry: symmetric padding, ceil mode, adaptive bins."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError

Array = jax.Array


def _geometry(size: int, window: int, stride: int, padding: int, ceil_mode: bool) -> tuple[int, int]:
    """Returns the number of windows along one axis and the padding after it.

    In ceil mode a last window may hang over the end, but it must start inside the map or its left padding.
    """
    span = size + 2 * padding - window
    windows = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1
    if windows < 1:
        raise UserError(f"a window of {window} does not fit a map of {size} pixels: the images are too small")
    return windows, max((windows - 1) * stride + window - size - padding, 0)


def _paddings(x: Array, window: int, stride: int, padding: int, ceil_mode: bool) -> list[tuple[int, int]]:
    if x.ndim != 4:
        raise ValueError(f"pooling takes maps of shape (batch, height, width, channels), got {x.shape}")
    return [(padding, _geometry(size, window, stride, padding, ceil_mode)[1]) for size in x.shape[1:3]]


def max_pool(x: Array, window: int, stride: int, *, padding: int = 0, ceil_mode: bool = False) -> Array:
    """Takes the maximum over square windows.

    Args:
      x: maps (B, H, W, C).
      window: height and width of the window, in pixels.
      stride: distance between windows, in pixels.
      padding: pixels of minus infinity on each side.
      ceil_mode: whether a last window may hang over the end, as torch's `ceil_mode` does.

    Returns:
      (B, H', W', C), H' = floor or ceil of (H + 2 padding - window) / stride, plus 1.

    Raises:
      UserError: no window fits.
    """
    paddings = _paddings(x, window, stride, padding, ceil_mode)
    return nn.max_pool(x, (window, window), (stride, stride), paddings)


def average_pool(
    x: Array,
    window: int,
    stride: int,
    *,
    padding: int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Takes the mean over square windows; arguments and shapes as in `max_pool`.

    Padding counts as zeros unless `count_include_pad` is False. What ceil mode adds at the end never counts, as
    in torch's `avg_pool2d`.
    """
    paddings = _paddings(x, window, stride, padding, ceil_mode)
    # Half precision would round after each summand: 1 % off in a window of 4x4, 20 % in one of 25x25.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = nn.pooling.pool(wide, 0.0, jax.lax.add, (window, window), (stride, stride), paddings)

    def counts(size: int, windows: int) -> np.ndarray:
        start = np.arange(windows) * stride - padding
        low, high = (-padding, size + padding) if count_include_pad else (0, size)
        return np.minimum(start + window, high) - np.maximum(start, low)

    rows, columns = (counts(size, windows) for size, windows in zip(x.shape[1:3], total.shape[1:3], strict=True))
    if np.all(rows == window) and np.all(columns == window):
        return (total / window**2).astype(x.dtype)
    area = jnp.asarray(rows[:, None, None], wide.dtype) * jnp.asarray(columns[:, None], wide.dtype)
    return (total / area).astype(x.dtype)


def adaptive_average_pool(x: Array, output_size: tuple[int, int]) -> Array:
    """Takes the mean over the bins [floor(i H / out), ceil((i + 1) H / out)), as torch's AdaptiveAvgPool2d.

    Args:
      x: maps (B, H, W, C); the bins overlap where H is no multiple of the output, and repeat where it is smaller.
      output_size: height and width of the result.

    Returns:
      (B, *output_size, C); `x` itself where it has that size already.
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
        # Accelerators would round the summands to their matrix unit's format.
        x = jnp.moveaxis(jnp.tensordot(inside, x, (1, axis), precision=jax.lax.Precision.HIGHEST), 0, axis)
        shape = [bins if a == axis else 1 for a in range(4)]
        x = x / jnp.asarray((end - start).reshape(shape), x.dtype)
    return x.astype(dtype)
