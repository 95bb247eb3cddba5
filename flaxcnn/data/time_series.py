"""Time series as pictures: the Gramian angular fields, which make a network for images one for series.

Wang, Oates: "Imaging Time-Series to Improve Classification and Imputation", IJCAI 2015, section 2. A series scaled
to [-1, 1] is read as cosines of angles phi in [0, pi], and the picture of T values is T x T. Here it is computed by
the paper's algebraic form, without an angle. Left out: its scaling to [0, 1] and its Markov transition fields.
"""

import math

import jax
import jax.numpy as jnp

from flaxcnn.errors import UserError

Array = jax.Array


def min_max_scale(series: Array) -> Array:
    """Scales each series (..., T) so that its least value is -1 and its greatest 1.

    A constant series becomes 0, the middle of the range, with gradient 0. The result is float32, or float64 if the
    series is.
    """
    series = jnp.asarray(series)
    series = series.astype(jnp.promote_types(series.dtype, jnp.float32))
    least, greatest = series.min(axis=-1, keepdims=True), series.max(axis=-1, keepdims=True)
    constant = least == greatest
    share = (series - least) / jnp.where(constant, 1, greatest - least)  # nor does 0/0 reach the gradient
    # Compiled division is some roundings off. The greatest value would miss 1, and one rounding below 1 the sine of
    # the angle is 0.0003 in float32, not 0; a value beside it could pass 1, where there is no angle.
    share = jnp.where(series == greatest, 1, jnp.minimum(share, 1))
    return jnp.where(constant, 0, 2 * share - 1)


def piecewise_aggregate(series: Array, segments: int) -> Array:
    """Shrinks each series (..., T) to the means of equal segments, (..., segments).

    Keogh, Pazzani: "Scaling up Dynamic Time Warping for Datamining Applications", 2000. Where the length is no
    multiple of `segments`, a value on a border counts in both neighbours, by its share in each.

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
    """Returns cos(phi_i + phi_j) = x_i x_j - sqrt(1 - x_i^2) sqrt(1 - x_j^2), symmetric, (..., T) to (..., T, T).

    Values must lie in [-1, 1], as those of `min_max_scale` do; others give NaN. The dtype is theirs. At -1 and 1,
    where the slope of the square root is infinite, its gradient is taken to be 0. After `min_max_scale` that is no
    approximation, for the extremes stay -1 and 1 whatever the series.
    """
    sines = _sines(scaled)
    return scaled[..., :, None] * scaled[..., None, :] - sines[..., :, None] * sines[..., None, :]


def gramian_difference_field(scaled: Array) -> Array:
    """Returns sin(phi_i - phi_j) = sqrt(1 - x_i^2) x_j - x_i sqrt(1 - x_j^2), (..., T) to (..., T, T).

    It is antisymmetric, with the paper's sign: an entry is positive where the column's value is above the row's.
    All else is as in `gramian_summation_field`.
    """
    sines = _sines(scaled)
    return sines[..., :, None] * scaled[..., None, :] - scaled[..., :, None] * sines[..., None, :]


def _sines(cosines: Array) -> Array:
    squares = (1 - cosines) * (1 + cosines)  # loses no digits near the ends, as 1 - x^2 would
    ends = squares == 0
    # Both `where` are needed: with the outer alone the gradient is 0 times infinity.
    return jnp.where(ends, 0, jnp.sqrt(jnp.where(ends, 1, squares)))
