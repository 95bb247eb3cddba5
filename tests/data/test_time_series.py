"""Series as images: published figures, the trigonometric definition, gradients up to the ends of the range."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.data.time_series import (
    gramian_difference_field,
    gramian_summation_field,
    min_max_scale,
    piecewise_aggregate,
)
from flaxcnn.errors import UserError

SERIES = np.array([0.2, -0.5, -1.25, 3.16, -2.57, -2.25])
FIELDS = {
    "summation": (gramian_summation_field, lambda first, second: np.cos(first + second)),
    "difference": (gramian_difference_field, lambda first, second: np.sin(first - second)),
}
both = pytest.mark.parametrize("kind", FIELDS)


def random_series(*shape):
    return np.random.default_rng(0).normal(3, 10, shape)


@functools.partial(jax.jit, static_argnums=0)
def to_image(kind, series):
    return FIELDS[kind][0](min_max_scale(series))


def test_summation_field_of_six_values_is_as_published():
    field = to_image("summation", jnp.asarray(SERIES, jnp.float32))
    first = [-0.99780099, -0.95099997, -0.82379029, -0.03315881, 0.03315881, -0.42954207]
    last = [-0.42954207, -0.1947212, 0.09228448, -0.88830716, 0.88830716, 0.5781792]
    assert field.dtype == jnp.float32 and field.shape == (6, 6)
    np.testing.assert_allclose(field[0], first, atol=1e-6)
    np.testing.assert_allclose(field[-1], last, atol=1e-6)


@both
def test_fields_are_their_trigonometric_definition(kind, x64):
    field, definition = FIELDS[kind]
    cosines = np.concatenate([[-1, 1, 0, 1 - 1e-14, 1e-14 - 1], np.random.default_rng(0).uniform(-1, 1, 40)])
    angles = np.arccos(cosines)
    result = jax.jit(field)(cosines)
    assert result.dtype == jnp.float64
    np.testing.assert_allclose(result, definition(angles[:, None], angles[None, :]), atol=1e-12)


def test_summation_field_is_symmetric_with_the_doubled_angle_on_its_diagonal(x64):
    series = random_series(50)
    field = to_image("summation", series)
    np.testing.assert_allclose(field, field.T, atol=1e-15)
    angles = np.arccos(np.interp(series, [series.min(), series.max()], [-1, 1]))
    np.testing.assert_allclose(np.diag(field), np.cos(2 * angles), atol=1e-12)


def test_difference_field_is_antisymmetric_and_positive_where_the_column_has_the_larger_value(x64):
    series = random_series(50)
    field = np.asarray(to_image("difference", series))
    np.testing.assert_allclose(field, -field.T, atol=1e-15)
    # The angle falls from pi to 0 as the value rises. The two ends are pi apart, and the sine of that is 0.
    signs = np.sign(series[None, :] - series[:, None])
    extremes = [series.argmin(), series.argmax()]
    signs[np.ix_(extremes, extremes)] = 0
    np.testing.assert_array_equal(np.sign(field)[signs != 0], signs[signs != 0])
    np.testing.assert_allclose(field[signs == 0], 0, atol=1e-15)


@both
def test_leading_axes_are_a_loop_and_vmap(kind):
    series = jnp.asarray(random_series(2, 3, 16), jnp.float32)
    function = functools.partial(to_image, kind)
    batched = function(series)
    assert batched.shape == (2, 3, 16, 16) and batched.dtype == jnp.float32
    looped = np.stack([[function(one) for one in row] for row in series])
    np.testing.assert_allclose(batched, looped, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.vmap(function))(series), looped, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8])
def test_scaling_is_linear_and_reaches_both_ends(dtype, x64):
    series = np.random.default_rng(0).integers(-128, 128, (300, 20)).astype(dtype)
    scaled = np.asarray(jax.jit(min_max_scale)(series))
    assert scaled.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert (scaled.min(axis=1) == -1).all() and (scaled.max(axis=1) == 1).all()
    expected = [np.interp(one, [one.min(), one.max()], [-1, 1]) for one in series.astype(np.float64)]
    np.testing.assert_allclose(scaled, expected, atol=1e-6)


def test_constant_series_is_the_middle_of_the_range_among_others_that_are_not():
    series = jnp.array([[7.0, 7.0, 7.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(min_max_scale(series), [[0, 0, 0], [-1, 0, 1]])
    np.testing.assert_array_equal(to_image("summation", series)[0], -np.ones((3, 3)))
    np.testing.assert_array_equal(to_image("difference", series)[0], np.zeros((3, 3)))


@both
def test_gradients_are_finite_at_the_ends_and_for_constant_series(kind):
    weights = jnp.asarray(random_series(4, 4), jnp.float32)

    def total(field, values):
        return (weights * field(values)).sum()

    ends = jax.jit(jax.grad(functools.partial(total, FIELDS[kind][0])))(jnp.array([-1.0, 1.0, 0.5, 1.0]))
    assert np.isfinite(ends).all() and (ends != 0).all()
    of_series = jax.jit(jax.grad(functools.partial(total, functools.partial(to_image, kind))))
    for series in ([2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 5.0, 5.0]):
        assert np.isfinite(of_series(jnp.array(series))).all(), series


@both
@pytest.mark.parametrize("scale", [False, True], ids=["of cosines", "of a series with its extremes"])
def test_gradient_is_the_quotient_of_differences(kind, scale, x64):
    weights = random_series(8, 8)
    values = random_series(8) if scale else np.random.default_rng(1).uniform(-0.95, 0.95, 8)
    function = functools.partial(to_image, kind) if scale else FIELDS[kind][0]

    def total(values):
        return (weights * function(values)).sum()

    step = 1e-5 * np.eye(8)
    above, below = jax.jit(lambda x: (jax.vmap(total)(x + step), jax.vmap(total)(x - step)))(values)
    differences = (above - below) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(total))(values), differences, rtol=1e-6, atol=1e-7)


@both
def test_values_beyond_the_range_are_not_numbers_rather_than_wrong_ones(kind):
    field = np.asarray(jax.jit(FIELDS[kind][0])(jnp.array([0.5, 1.1, -0.2])))
    assert np.isnan(field[1]).all() and np.isnan(field[:, 1]).all()
    assert np.isfinite(field[np.ix_([0, 2], [0, 2])]).all()


@pytest.mark.parametrize(("length", "segments"), [(12, 4), (12, 12), (12, 1), (12, 5), (7, 3), (10, 4)])
def test_aggregation_is_the_mean_of_the_step_function_over_each_segment(length, segments):
    series = random_series(2, length)
    # The integral of the step function is linear between its values at 0 ... length.
    integral = np.concatenate([np.zeros((2, 1)), series.cumsum(axis=1)], axis=1)
    borders = np.linspace(0, length, segments + 1)
    at_borders = np.stack([np.interp(borders, np.arange(length + 1), row) for row in integral])
    expected = np.diff(at_borders, axis=1) / (length / segments)
    result = jax.jit(piecewise_aggregate, static_argnums=1)(jnp.asarray(series, jnp.float32), segments)
    assert result.shape == (2, segments) and result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("segments", [0, 13])
def test_aggregation_refuses_other_numbers_of_segments(segments):
    with pytest.raises(UserError, match=rf"12 values cannot be cut into {segments} segments; take 1 to 12"):
        piecewise_aggregate(jnp.zeros(12), segments)
