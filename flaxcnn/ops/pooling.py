"""Pooling of NHWC maps with torch's geometry: symmetric padding, ceil mode, adaptive bins."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.ops.geometry import Paddings, framed

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _maximum(x: Array, window: int, stride: int, paddings: Paddings) -> Array:
    # By itself XLA's own is as fast where a frame would have to be put around the maps first.
    return _maximum_on(x, window, stride, paddings, in_one_pass=not any(map(any, paddings)))


def _maximum_on(x: Array, window: int, stride: int, paddings: Paddings, *, in_one_pass: bool) -> Array:
    def one_pass(x: Array) -> Array:
        return functools.reduce(jax.lax.max, _places(x, window, stride, paddings))

    def stock(x: Array) -> Array:
        return nn.max_pool(x, (window, window), (stride, stride), paddings)

    return jax.lax.platform_dependent(x, cpu=one_pass if in_one_pass else stock, default=stock)


def _maximum_forward(x: Array, window: int, stride: int, paddings: Paddings) -> tuple[Array, tuple[Array]]:
    # The gradient needs the frame too, and the compiler makes it once for both.
    return _maximum_on(x, window, stride, paddings, in_one_pass=True), (x,)


def _maximum_backward(
    window: int, stride: int, paddings: Paddings, saved: tuple[Array], gradient: Array
) -> tuple[Array]:
    """Gives each gradient to the first maximum of its window.

    XLA's own select-and-scatter does it value by value on a CPU, and by atomic additions in any order on a GPU.
    """
    (x,) = saved
    (top, _), (left, _) = paddings
    batch, height, width, channels = x.shape
    rows, columns = gradient.shape[1:3]
    maximum, *others = _places(x, window, stride, paddings)
    first = jnp.zeros(gradient.shape, jnp.uint8 if window < 16 else jnp.int32)
    for place, value in enumerate(others, 1):
        # As select-and-scatter compares, for which what is not a number is less than anything after it.
        more = ~(maximum >= value)
        maximum = jnp.where(more, value, maximum)
        first = jnp.where(more, jnp.asarray(place, first.dtype), first)
    outside = window**2 if window < 16 else -1

    # Pixels whose rows leave the same remainder by the stride, and whose columns do, lie under the same places of
    # the windows. Each such lattice of pixels takes from its windows in their order, the order in which
    # select-and-scatter adds, to the same bits.
    reach = (window - 1) // stride
    lattice = [-(-(size + sum(both)) // stride) for size, both in zip((height, width), paddings, strict=True)]
    frame = tuple((reach, size - windows) for size, windows in zip(lattice, (rows, columns), strict=True))
    first, gradient = framed(first, frame, outside), framed(gradient, frame, 0)

    def lattice_gradient(row: int, column: int) -> Array:
        total = jnp.zeros((batch, *lattice, channels), gradient.dtype)
        for y in reversed(range(row, window, stride)):
            for x in reversed(range(column, window, stride)):
                start = (0, reach - y // stride, reach - x // stride, 0)
                end = (batch, start[1] + lattice[0], start[2] + lattice[1], channels)
                chosen = jax.lax.slice(first, start, end) == y * window + x
                total = total + jnp.where(chosen, jax.lax.slice(gradient, start, end), 0)
        return total

    result = lattice_gradient(0, 0)
    if stride > 1:
        lattices = [[lattice_gradient(row, column) for column in range(stride)] for row in range(stride)]
        # Interleaved within the loops that add, they would take one value at a time.
        lattices = jax.lax.optimization_barrier(lattices)
        result = jnp.stack([jnp.stack(columns, axis=3) for columns in lattices], axis=2)
        result = result.reshape(batch, lattice[0] * stride, lattice[1] * stride, channels)
    return (result[:, top : top + height, left : left + width],)


_maximum.defvjp(_maximum_forward, _maximum_backward)


def _places(x: Array, window: int, stride: int, paddings: Paddings) -> list[Array]:
    """Returns what lies under each place of the windows, row by row: arrays (B, H', W', C) for H' x W' windows."""
    x = framed(x, paddings, -jnp.inf)
    batch, height, width, channels = x.shape
    last = [(size - window) // stride * stride for size in (height, width)]
    return [
        jax.lax.slice(
            x, (0, y, x_, 0), (batch, y + last[0] + 1, x_ + last[1] + 1, channels), (1, stride, stride, 1)
        )
        for y, x_ in itertools.product(range(window), repeat=2)
    ]


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
    return _maximum(x, window, stride, tuple(_paddings(x, window, stride, padding, ceil_mode)))


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
    total = _sum(wide, window, stride, paddings)

    def counts(size: int, windows: int) -> np.ndarray:
        start = np.arange(windows) * stride - padding
        low, high = (-padding, size + padding) if count_include_pad else (0, size)
        return np.minimum(start + window, high) - np.maximum(start, low)

    rows, columns = (counts(size, windows) for size, windows in zip(x.shape[1:3], total.shape[1:3], strict=True))
    if np.all(rows == window) and np.all(columns == window):
        return (total / window**2).astype(x.dtype)
    area = jnp.asarray(rows[:, None, None], wide.dtype) * jnp.asarray(columns[:, None], wide.dtype)
    return (total / area).astype(x.dtype)


def _sum(x: Array, window: int, stride: int, paddings: list[tuple[int, int]]) -> Array:
    if window != stride or any(map(any, paddings)):
        return nn.pooling.pool(x, 0.0, jax.lax.add, (window, window), (stride, stride), paddings)
    # Windows side by side are an axis of their own, whose sum and gradient are a fraction of the work.
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(batch, rows, window, columns, window, channels).sum(axis=(2, 4))


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
