"""BatchNorm beside linen's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.models.batch_norm import BatchNorm

FIELDS = [
    {},
    {"use_scale": False},
    {"use_bias": False, "momentum": 0.5},
    {"epsilon": 1e-3, "use_fast_variance": False},
]


def images(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 5, 6, 3)), dtype)


def variables(norm):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(norm.clone(use_running_average=True).init, jax.random.key(0), images())
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_equals_linen(fields, running):
    fields = {"use_running_average": running, "force_float32_reductions": False, **fields}
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    weights = jnp.asarray(np.random.default_rng(2).normal(size=images().shape))

    def results(norm):
        def loss(params, x):
            y, updated = norm.apply({**state, "params": params}, x, mutable=["batch_stats"])
            return (jnp.sin(y) * weights).sum(), (y, updated)

        state = variables(norm)
        params = state.get("params", {})
        gradients, (y, updated) = jax.grad(loss, (0, 1), has_aux=True)(params, images(np.float64))
        return gradients, y, updated

    with jax.enable_x64(True):
        found = results(BatchNorm(**dtypes, **fields))
        expected = results(nn.BatchNorm(**{"momentum": 0.9, **dtypes, **fields}))
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)


def test_statistics_and_the_start_are_linens():
    found = BatchNorm(use_running_average=False).init(jax.random.key(0), images())
    expected = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), images())
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_half_precision_has_statistics_in_single(dtype):
    norm = BatchNorm(dtype=dtype, use_running_average=False)
    y, updated = norm.apply(variables(norm), images(dtype), mutable=["batch_stats"])
    assert y.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}


def test_the_gradient_needs_no_map_but_the_input():
    x, norm = images(), BatchNorm(use_running_average=False)
    state = variables(norm)
    _, gradient = jax.vjp(jax.jit(lambda x: norm.apply(state, x, mutable=["batch_stats"])[0]), x)
    maps = [leaf for leaf in jax.tree.leaves(gradient) if leaf.shape == x.shape]
    assert len(maps) <= 1
    for leaf in maps:
        np.testing.assert_array_equal(leaf, x)


def test_channels_lie_on_the_last_axis():
    with pytest.raises(ValueError, match="axis=1"):
        BatchNorm(axis=1, use_running_average=True).init(jax.random.key(0), images())
