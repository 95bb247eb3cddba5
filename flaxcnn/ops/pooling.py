"""Pooling of NHWC maps with torch's geometry: symmetric padding, ceil mode, adaptive bins."""

import functools
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import max_dim
from jax.interpreters import ad

from flaxcnn.errors import UserError
from flaxcnn.ops.geometry import Paddings, transposed
from flaxcnn.ops.primitives import Multilinear, map_over_rows, primitive, uses_stock

Array = jax.Array
# In so many pieces at most is a maximum taken on a CPU: the windows inside, at the sides, and in the corners.
PIECES = 9
# Of so many places under a window at most is a sum taken one by one there.
PLACES = 64


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
    return windows, max_dim((windows - 1) * stride + window - size - padding, 0)


def _paddings(x: Array, window: int, stride: int, padding: int, ceil_mode: bool) -> Paddings:
    if x.ndim != 4:
        raise ValueError(f"pooling takes maps of shape (batch, height, width, channels), got {x.shape}")
    rows, columns = (_geometry(size, window, stride, padding, ceil_mode)[1] for size in x.shape[1:3])
    return (padding, rows), (padding, columns)


def _stock_maximum(x: Array, window: int, stride: int, paddings: Paddings, **_: Any) -> Array:
    return nn.pooling.pool(x, -jnp.inf, jax.lax.max, (window, window), (stride, stride), paddings)


def _maximum_on_cpu(x: Array, window: int, stride: int, paddings: Paddings, is_derived: bool) -> Array:
    rows, columns = (_stretches(n, window, stride, both) for n, both in zip(x.shape[1:3], paddings, strict=True))
    # The gradient needs the frame too, and the compiler makes it once for both.
    if is_derived or len(rows) * len(columns) > PIECES or max(map(max, paddings)) >= window:
        return _maximum_of_places(_framed(x, paddings, -jnp.inf), (window, window), stride)
    return _maximum_in_pieces(x, stride, rows, columns)


def _maximum_of_places(x: Array, window: tuple[int, int], stride: int) -> Array:
    return functools.reduce(jax.lax.max, _places(x, window, stride))


class _Stretch(NamedTuple):
    """Neighbouring windows along an axis that see as many pixels each.

    Attributes:
      first: number of the first window.
      start, end: the pixels that they see together.
      window: how many each sees.
    """

    first: int
    start: int
    end: int
    window: int


def _stretches(size: int, window: int, stride: int, padding: tuple[int, int]) -> list[_Stretch]:
    """Returns the windows that the ends of the map cut, each by itself, and between them the others together."""
    stretches = []
    for number in range((size + sum(padding) - window) // stride + 1):
        start = number * stride - padding[0]
        first, end = max(start, 0), min(start + window, size)
        if stretches and end - first == stretches[-1].window == window:
            stretches[-1] = stretches[-1]._replace(end=end)
        else:
            stretches.append(_Stretch(number, first, end, end - first))
    return stretches


def _maximum_in_pieces(x: Array, stride: int, rows: list[_Stretch], columns: list[_Stretch]) -> Array:
    """Takes the maximum by a loop for the windows inside the map, and one for each kind of those that it cuts.

    Padding would be a copy of the map, or a branch for each value.
    """
    pieces = {}
    for down, right in itertools.product(rows, columns):
        seen = x[:, down.start : down.end, right.start : right.end]
        pieces[down.first, right.first] = _maximum_of_places(seen, (down.window, right.window), stride)
    if len(pieces) == 1:
        return pieces[0, 0]
    last = pieces[rows[-1].first, columns[-1].first].shape
    shape = x.shape[0], rows[-1].first + last[1], columns[-1].first + last[2], x.shape[3]
    # By the barrier the zeros are memory, which the pieces are written into.
    result = jax.lax.optimization_barrier(jnp.zeros(shape, x.dtype))
    for (row, column), piece in pieces.items():
        result = jax.lax.dynamic_update_slice(result, piece, (0, row, column, 0))
    return result


def _select(x: Array, values: Array, window: int, stride: int, paddings: Paddings) -> Array:
    """Returns of each window the value that lies where `x` has its first maximum."""
    maximum, *others = _places(_framed(x, paddings, -jnp.inf), (window, window), stride)
    chosen, *candidates = _places(_framed(values, paddings), (window, window), stride)
    for value, candidate in zip(others, candidates, strict=True):
        more = ~(maximum >= value)
        maximum, chosen = jnp.where(more, value, maximum), jnp.where(more, candidate, chosen)
    return chosen


def _scatter(x: Array, gradient: Array, window: int, stride: int, paddings: Paddings) -> Array:
    """Gives the gradient of each window to its first maximum: the transpose of `_select`.

    XLA's own select-and-scatter does it value by value on a CPU, and by atomic additions in any order on a GPU.
    """
    (top, _), (left, _) = paddings
    batch, height, width, channels = x.shape
    rows, columns = gradient.shape[1:3]
    maximum, *others = _places(_framed(x, paddings, -jnp.inf), (window, window), stride)
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
    frame = (reach, lattice[0] - rows), (reach, lattice[1] - columns)
    # By the barrier the gradient is memory: the loop that frames it has a branch for each value, and would not be
    # vectorised. So it is with the loop that interleaves, below.
    gradient = jax.lax.optimization_barrier(gradient)
    first, gradient = _framed(first, frame, outside), _framed(gradient, frame, 0)

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
    return jax.lax.optimization_barrier(result[:, top : top + height, left : left + width])


def _selected(result: str, shape: tuple[int, ...], x: Array, values: Array, **geometry: Any) -> Array:
    return (_select if result == "output" else _scatter)(x, values, **geometry)


def _stock_selected(x: Array, values: Array, **geometry: Any) -> Array:
    return jax.jvp(functools.partial(_stock_maximum, **geometry), (x,), (values,))[1]


_selection = Multilinear(
    "flaxcnn_max_pool_tangent",
    ("input", "output"),
    residuals=1,
    stock=_stock_selected,
    default=_selected,
    cpu=_selected,
)
_maximum = primitive("flaxcnn_max_pool", result_type=_stock_maximum, default=_stock_maximum, cpu=_maximum_on_cpu)
map_over_rows(_maximum, _stock_maximum)


def _maximum_and_tangent(operands: tuple[Array], tangents: tuple[Array], **params: Any) -> tuple[Array, Array]:
    geometry = {**params}
    del geometry["is_derived"]
    tangent = _selection(*operands, *tangents, **geometry)
    return _maximum.bind(*operands, **geometry, is_derived=True), tangent


ad.primitive_jvps[_maximum] = _maximum_and_tangent


def _framed(x: Array, paddings: Paddings, value: float = 0) -> Array:
    """Pads maps; in memory, because within a loop that reads it padding is a branch for each value."""
    if not any(map(any, paddings)):
        return x
    config = ((0, 0, 0), *((*both, 0) for both in paddings), (0, 0, 0))
    return jax.lax.optimization_barrier(jax.lax.pad(x, jnp.asarray(value, x.dtype), config))


def _places(x: Array, window: tuple[int, int], stride: int) -> list[Array]:
    """Returns what lies under each place of the windows, row by row: arrays (B, H', W', C) for H' x W' windows."""
    batch, *sizes, channels = x.shape
    last = [(size - places) // stride * stride for size, places in zip(sizes, window, strict=True)]
    return [
        jax.lax.slice(
            x, (0, y, x_, 0), (batch, y + last[0] + 1, x_ + last[1] + 1, channels), (1, stride, stride, 1)
        )
        for y, x_ in itertools.product(*map(range, window))
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
    paddings = _paddings(x, window, stride, padding, ceil_mode)
    if uses_stock():
        return _stock_maximum(x, window, stride, paddings)
    return _maximum.bind(x, window=window, stride=stride, paddings=paddings, is_derived=False)


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
    if not ceil_mode and (count_include_pad or not padding):  # every window is full, whatever the size
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
    # XLA:CPU gives sums over axes to a library, and with them what they are sums of, convolutions included. The
    # gradient of such a sum is a fraction of the work of that of places.
    if result == "output" and window**2 <= PLACES:
        # By the barrier x is memory: computed within the sum, place by place, an activation is not vectorised.
        return functools.reduce(jax.lax.add, _places(jax.lax.optimization_barrier(x), (window, window), window))
    return _summed(result, shape, x, window)


_sum_side_by_side = Multilinear(
    "flaxcnn_window_sum", ("input", "output"), stock=_stock_sum, default=_summed, cpu=_summed_on_cpu
)


def global_average_pool(x: Array, *, keepdims: bool = False) -> Array:
    """Takes the mean over the pixels.

    Args:
      x: maps (B, H, W, C).
      keepdims: whether the result keeps two axes for them.

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
    # For a sum see `_summed_on_cpu`. Half precision has its sums in single precision.
    if result != "output" or x.dtype not in (jnp.float32, jnp.float64):
        return _averaged(result, shape, x)
    batch, height, width, channels = x.shape
    weights = jnp.full((batch, height * width), 1 / (height * width), x.dtype)
    x = x.reshape(batch, height * width, channels)
    return jax.lax.dot_general(weights, x, (((1,), (1,)), ((0,), (0,))))


_mean = Multilinear("flaxcnn_mean", ("input", "output"), stock=_stock_mean, default=_averaged, cpu=_averaged_on_cpu)


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
