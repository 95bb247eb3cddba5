"""Time series as images: Gramian angular fields, with which image networks classify time series.

Wang, Oates: "Imaging Time-Series to Improve Classification and Imputation", IJCAI 2015, section 2. A series x of T
values in [-1, 1] becomes an image of T x T pixels, which is defined by the angles phi_i = arccos(x_i). The image is
computed by the algebraic form in the paper, without the angles. Not implemented: scaling to [0, 1], and Markov
transition fields.
"""

import math

import jax
import jax.numpy as jnp

from flaxcnn.errors import UserError

Array = jax.Array


def min_max_scale(series: Array) -> Array:
    """Scales each series (..., T) so that its minimum is -1 and its maximum is 1.

    A constant series becomes 0, the middle of the range, with gradient 0. The result is float64 if the series is,
    otherwise float32.
    """
    series = jnp.asarray(series)
    series = series.astype(jnp.promote_types(series.dtype, jnp.float32))
    minimum, maximum = series.min(axis=-1, keepdims=True), series.max(axis=-1, keepdims=True)
    constant = minimum == maximum
    # The divisor is 1 for a constant series, so that 0/0 does not reach the gradient.
    fraction = (series - minimum) / jnp.where(constant, 1, maximum - minimum)
    # Compiled division may be wrong in the last bits. The maximum might then not become exactly 1, and at the next
    # float32 below 1 the sine of the angle is 0.0003 instead of 0. A value near the maximum might exceed 1, where
    # the angle is not defined.
    fraction = jnp.where(series == maximum, 1, jnp.minimum(fraction, 1))
    return jnp.where(constant, 0, 2 * fraction - 1)


def piecewise_aggregate(series: Array, segments: int) -> Array:
    """Reduces each series (..., T) to the means of segments of equal length, (..., segments).

    Keogh, Pazzani: "Scaling up Dynamic Time Warping for Datamining Applications", 2000. If T is not a multiple of
    `segments`, a value on the border of two segments counts in both, in proportion to its overlap with each.

    Raises:
      UserError: `segments` is not between 1 and T.
    """
    length = series.shape[-1]
    if not 1 <= segments <= length:
        raise UserError(f"a series of {length} values cannot be cut into {segments} segments; take 1 to {length}")
    copies = segments // math.gcd(length, segments)
    pieces = jnp.repeat(series, copies, axis=-1).reshape(*series.shape[:-1], segments, -1)
    return pieces.mean(axis=-1)


def gramian_summation_field(scaled: Array) -> Array:
    """Returns the Gramian angular summation field of series x, (..., T) to (..., T, T), of the dtype of `scaled`.

    Pixel (i, j) is cos(phi_i + phi_j) = x_i x_j - sqrt(1 - x_i^2) sqrt(1 - x_j^2). The image is symmetric.

    At -1 and 1, where the square root has an infinite slope, its gradient is defined as 0. After `min_max_scale`
    that is exact, because it maps the extremes to -1 and 1 whatever the series.

    Args:
      scaled: (..., T), values in [-1, 1], such as those of `min_max_scale`; other values give NaN.
    """
    sines = _sines(scaled)
    return scaled[..., :, None] * scaled[..., None, :] - sines[..., :, None] * sines[..., None, :]


def gramian_difference_field(scaled: Array) -> Array:
    """Returns the Gramian angular difference field of series x, (..., T) to (..., T, T), of the dtype of `scaled`.

    Pixel (i, j) is sin(phi_i - phi_j) = sqrt(1 - x_i^2) x_j - x_i sqrt(1 - x_j^2). The image is antisymmetric, with
    the paper's sign: pixel (i, j) is positive if x_j > x_i. For the gradient at -1 and 1 see
    `gramian_summation_field`.

    Args:
      scaled: (..., T), values in [-1, 1], such as those of `min_max_scale`; other values give NaN.
    """
    sines = _sines(scaled)
    return sines[..., :, None] * scaled[..., None, :] - scaled[..., :, None] * sines[..., None, :]


def _sines(cosines: Array) -> Array:
    squares = (1 - cosines) * (1 + cosines)  # 1 - x^2 would lose digits near -1 and 1
    ends = squares == 0
    # Both calls of `where` are needed: with the outer one alone the gradient would be 0 times infinity.
    return jnp.where(ends, 0, jnp.sqrt(jnp.where(ends, 1, squares)))
