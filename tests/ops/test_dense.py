"""Dense layers against JAX's own product: values, derivatives, maps and placements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxcnn.ops import onednn
from flaxcnn.ops.dense import dense

# (rows, channels, features): as networks have them, one row, one channel, and sizes without a common factor.
SIZES = [(64, 256, 128), (256, 120, 84), (1, 400, 120), (7, 1, 13), (3, 17, 1), (33, 100, 10)]


def arrays(size, dtype="float32"):
    rng = np.random.default_rng(0)
    rows, channels, features = size
    shapes = (rows, channels), (channels, features)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def value_and_gradients(product, *operands):
    def loss(x, kernel):
        return jnp.sin(product(x, kernel)).sum()

    return [product(*operands), *jax.jit(jax.grad(loss, argnums=(0, 1)))(*operands)]


@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_those_of_jax(size):
    operands = arrays(size)
    for found, expected in zip(*(value_and_gradients(f, *operands) for f in (dense, jnp.matmul)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_double_precision_is_exact(x64):
    operands = arrays(SIZES[0], "float64")
    for found, expected in zip(*(value_and_gradients(f, *operands) for f in (dense, jnp.matmul)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(onednn.programs() is None, reason="needs oneDNN")
def test_programs_of_the_library_compute_all_but_one_row():
    def calls(rows):
        text = (
            jax.jit(jax.grad(lambda x, k: (dense(x, k) ** 2).sum(), (0, 1)))
            .lower(*arrays((rows, 64, 32)))
            .as_text()
        )
        return text.count(onednn.NAME)

    assert calls(16) == 3 and calls(1) == 2


def test_bfloat16_is_rounded_once():
    operands = arrays(SIZES[0], "bfloat16")
    exact = np.asarray(operands[0], np.float64) @ np.asarray(operands[1], np.float64)
    found = dense(*operands)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=2**-8 * np.abs(exact).max())


@pytest.mark.parametrize("axes", [(0, None), (1, None), (None, 0), (None, 2), (0, 1)])
def test_maps_are_those_of_jax(axes):
    x, kernel = arrays((6, 10, 4))
    operands = [
        array if axis is None else jnp.stack([array, 2 * array, -array], axis)
        for array, axis in zip((x, kernel), axes, strict=True)
    ]
    for found, expected in zip(
        *(jax.vmap(lambda a, b, f=f: value_and_gradients(f, a, b), axes)(*operands) for f in (dense, jnp.matmul)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_curvature_is_that_of_jax(x64):
    x, kernel = arrays((3, 4, 2), "float64")
    found, expected = (jax.hessian(lambda k, f=f: jnp.sin(f(x, k)).sum())(kernel) for f in (dense, jnp.matmul))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_sharded_over_devices_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel = arrays((16, 20, 12))
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("devices")))
    kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    y = jax.jit(dense)(x, kernel)
    assert y.sharding.is_equivalent_to(x.sharding, 2)
    np.testing.assert_allclose(y, np.asarray(x) @ np.asarray(kernel), rtol=1e-5, atol=1e-5)


def test_other_ranks_are_refused():
    with pytest.raises(ValueError, match=r"dense takes x \(B, C\) and a kernel \(C, N\), got"):
        dense(jnp.ones((2, 3, 4)), jnp.ones((4, 5)))
