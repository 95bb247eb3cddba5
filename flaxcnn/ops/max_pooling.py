"""Max pooling of NHWC feature maps; the gradient goes to the first maximum of each window, on every platform."""

import functools
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.interpreters import ad

from flaxcnn.ops.geometry import Paddings
from flaxcnn.ops.multilinear import Multilinear
from flaxcnn.ops.pooling_windows import pooling_paddings, window_slices
from flaxcnn.ops.primitives import primitive
from flaxcnn.ops.stock import uses_stock
from flaxcnn.ops.vmap_rules import map_over_rows

Array = jax.Array
# On CPUs, the maximum is computed in at most this many pieces: the interior, the four sides and the four corners.
_MAX_PIECES = 9


def max_pool(x: Array, window: int, stride: int, *, padding: int = 0, ceil_mode: bool = False) -> Array:
    """Takes the maximum over square windows.

    Args:
      x: feature maps (B, H, W, C).
      window: height and width of the window, in pixels.
      stride: distance between windows, in pixels.
      padding: number of pixels with the value minus infinity that are added on each side.
      ceil_mode: whether the last window may extend beyond the end, as with torch's `ceil_mode`.

    Returns:
      Feature maps (B, H', W', C), where H' is (H + 2 padding - window) / stride, rounded down (or up in ceil mode),
      plus 1, and likewise W'.

    Raises:
      UserError: the feature map is smaller than a window.
    """
    paddings = pooling_paddings(x, window, stride, padding, ceil_mode)
    if uses_stock():
        return _stock_maximum(x, window, stride, paddings)
    return _maximum.bind(x, window=window, stride=stride, paddings=paddings, is_derived=False)


def _stock_maximum(x: Array, window: int, stride: int, paddings: Paddings, **_: Any) -> Array:
    return nn.pooling.pool(x, -jnp.inf, jax.lax.max, (window, window), (stride, stride), paddings)


def _maximum_on_cpu(x: Array, window: int, stride: int, paddings: Paddings, is_derived: bool) -> Array:
    rows, columns = (_stretches(n, window, stride, both) for n, both in zip(x.shape[1:3], paddings, strict=True))
    # The gradient also needs the padded input, and the compiler then pads once for both.
    if is_derived or len(rows) * len(columns) > _MAX_PIECES or max(map(max, paddings)) >= window:
        return _maximum_of_slices(_padded(x, paddings, -jnp.inf), (window, window), stride)
    return _maximum_in_pieces(x, stride, rows, columns)


def _maximum_of_slices(x: Array, window: tuple[int, int], stride: int) -> Array:
    return functools.reduce(jax.lax.max, window_slices(x, window, stride))


class _Stretch(NamedTuple):
    """Consecutive windows along an axis that each cover the same number of pixels of the feature map.

    Attributes:
      first: index of the first window.
      start, end: range of the pixels that the windows cover together.
      window: number of pixels that each window covers.
    """

    first: int
    start: int
    end: int
    window: int


def _stretches(size: int, window: int, stride: int, padding: tuple[int, int]) -> list[_Stretch]:
    """Returns a stretch for each window that an end of the feature map cuts off, and one for all other windows."""
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
    """Computes the maximum without padding, one loop for each combination of a stretch of rows and one of columns.

    Padding would cost a copy of the feature map, or a branch for each value.
    """
    pieces = {}
    for down, right in itertools.product(rows, columns):
        covered = x[:, down.start : down.end, right.start : right.end]
        pieces[down.first, right.first] = _maximum_of_slices(covered, (down.window, right.window), stride)
    if len(pieces) == 1:
        return pieces[0, 0]
    last = pieces[rows[-1].first, columns[-1].first].shape
    shape = x.shape[0], rows[-1].first + last[1], columns[-1].first + last[2], x.shape[3]
    # The barrier materializes the zeros, so the pieces are written in place.
    result = jax.lax.optimization_barrier(jnp.zeros(shape, x.dtype))
    for (row, column), piece in pieces.items():
        result = jax.lax.dynamic_update_slice(result, piece, (0, row, column, 0))
    return result


def _select(x: Array, values: Array, window: int, stride: int, paddings: Paddings) -> Array:
    """Returns, for each window, the element of `values` at the position of the first maximum of `x`."""
    maximum, *others = window_slices(_padded(x, paddings, -jnp.inf), (window, window), stride)
    chosen, *candidates = window_slices(_padded(values, paddings), (window, window), stride)
    for value, candidate in zip(others, candidates, strict=True):
        is_larger = ~(maximum >= value)
        maximum, chosen = jnp.where(is_larger, value, maximum), jnp.where(is_larger, candidate, chosen)
    return chosen


def _scatter(x: Array, gradient: Array, window: int, stride: int, paddings: Paddings) -> Array:
    """Adds the gradient of each window at the position of its first maximum: the transpose of `_select`.

    XLA's select-and-scatter processes one value at a time on CPUs. On GPUs it adds atomically, in no fixed order.
    """
    (top, _), (left, _) = paddings
    batch, height, width, channels = x.shape
    rows, columns = gradient.shape[1:3]
    maximum, *others = window_slices(_padded(x, paddings, -jnp.inf), (window, window), stride)
    first = jnp.zeros(gradient.shape, jnp.uint8 if window < 16 else jnp.int32)
    for place, value in enumerate(others, 1):
        # The same comparison as in select-and-scatter, in which NaN is less than any later value.
        is_larger = ~(maximum >= value)
        maximum = jnp.where(is_larger, value, maximum)
        first = jnp.where(is_larger, jnp.asarray(place, first.dtype), first)
    outside = window**2 if window < 16 else -1

    # Pixels whose rows and columns are equal modulo the stride have the same offsets within their windows; they
    # form a lattice. Each lattice adds the gradients of its windows in the order of the windows. This is the order
    # of select-and-scatter, so the sums are bitwise equal.
    reach = (window - 1) // stride
    lattice = [-(-(size + sum(both)) // stride) for size, both in zip((height, width), paddings, strict=True)]
    frame = (reach, lattice[0] - rows), (reach, lattice[1] - columns)
    # The barrier materializes the gradient. The loop that pads has a branch for each value, so a gradient computed
    # within that loop would not be vectorized. The same holds for the loop below that interleaves the lattices.
    gradient = jax.lax.optimization_barrier(gradient)
    first, gradient = _padded(first, frame, outside), _padded(gradient, frame, 0)

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
        # Without the barrier, the additions would be fused with the interleaving and process one value at a time.
        lattices = jax.lax.optimization_barrier(lattices)
        result = jnp.stack([jnp.stack(columns, axis=3) for columns in lattices], axis=2)
        result = result.reshape(batch, lattice[0] * stride, lattice[1] * stride, channels)
    return jax.lax.optimization_barrier(result[:, top : top + height, left : left + width])


def _padded(x: Array, paddings: Paddings, value: float = 0) -> Array:
    """Pads feature maps and materializes the result; fused into a loop, padding would cost a branch per value."""
    if not any(map(any, paddings)):
        return x
    config = ((0, 0, 0), *((*both, 0) for both in paddings), (0, 0, 0))
    return jax.lax.optimization_barrier(jax.lax.pad(x, jnp.asarray(value, x.dtype), config))


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
