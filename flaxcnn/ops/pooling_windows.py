"""The square windows of pooling, with torch's geometry: symmetric padding and ceil mode."""

import itertools

import jax
from jax.core import max_dim

from flaxcnn.errors import UserError
from flaxcnn.ops.geometry import Paddings

Array = jax.Array


def pooling_paddings(x: Array, window: int, stride: int, padding: int, ceil_mode: bool) -> Paddings:
    """Returns the padding of feature maps (B, H, W, C) for pooling, including what ceil mode adds at the end.

    Raises:
      UserError: the feature map is smaller than a window.
      ValueError: `x` does not have four axes.
    """
    if x.ndim != 4:
        raise ValueError(f"pooling takes feature maps (batch, height, width, channels), got {x.shape}")
    rows, columns = (_padding_after(size, window, stride, padding, ceil_mode) for size in x.shape[1:3])
    return (padding, rows), (padding, columns)


def _padding_after(size: int, window: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Returns the padding at the end of one axis.

    In ceil mode the last window may extend beyond the end, but it must start inside the feature map or its left
    padding.
    """
    span = size + 2 * padding - window
    windows = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1
    if windows < 1:
        raise UserError(
            f"a window of {window} does not fit a feature map of {size} pixels: the images are too small"
        )
    return max_dim((windows - 1) * stride + window - size - padding, 0)


def window_slices(x: Array, window: tuple[int, int], stride: int) -> list[Array]:
    """Returns one array per offset within a window, which holds the values of all windows at that offset.

    Args:
      x: feature maps (B, H, W, C).
      window: height and width of the windows, in pixels.
      stride: distance between windows, in pixels.

    Returns:
      height * width arrays (B, H', W', C) for H' x W' windows; the offsets are in row-major order.
    """
    batch, *sizes, channels = x.shape
    last = [(size - length) // stride * stride for size, length in zip(sizes, window, strict=True)]
    return [
        jax.lax.slice(
            x,
            (0, row, column, 0),
            (batch, row + last[0] + 1, column + last[1] + 1, channels),
            (1, stride, stride, 1),
        )
        for row, column in itertools.product(*map(range, window))
    ]
