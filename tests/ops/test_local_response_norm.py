"""Local response normalization: the paper's formula in a plain loop, torch's values, gradients."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.ops.local_response_norm import local_response_norm
from tests.reference import formula

RECORDED = json.loads(Path(formula.__file__).with_name("pooling.json").read_text())
CASES = [case for case in RECORDED if case.startswith("lrn")]
FEW = (*range(1, 13), 40)
# A program that runs once is better compiled soon than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(FEW, id="few"),
        pytest.param(sorted({*range(1, 41)} - {*FEW}), id="rest", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_torch(case, sizes, x64):
    kind, size, *constants = case.split()
    alpha, beta, k = map(float, constants)
    normalize = functools.partial(
        local_response_norm, size=int(size), alpha=alpha, beta=beta, k=k, divide_by_size=True
    )
    shapes = {n: (2, 3, 3, n) if kind == "lrn" else (1, n, n, 7) for n in sizes}
    inputs = [3 * formula.values(f"{kind}{n}", shape) for n, shape in shapes.items()]
    outputs = jax.jit(lambda inputs: [normalize(x) for x in inputs]).lower(inputs).compile(QUICK)(inputs)
    for n, output in zip(sizes, outputs, strict=True):
        assert output.shape == shapes[n] and output.dtype == jnp.float64
        found, recorded = formula.fingerprint(output)[:2], RECORDED[case][n - 1][2:]
        np.testing.assert_allclose(found, recorded, rtol=1e-10, atol=1e-14, err_msg=f"{case} of {n}")


def test_recording_holds_all_cases():
    assert len(CASES) == 5


@pytest.mark.parametrize(
    ("options", "n", "alpha", "beta", "k"),
    [({}, 5, 1e-4, 0.75, 2.0), ({"size": 3, "alpha": 0.5, "beta": 0.6, "k": 1.5}, 3, 0.5, 0.6, 1.5)],
    ids=["defaults", "others"],
)
@pytest.mark.parametrize("channels", [1, 4, 11])
def test_values_are_those_of_the_paper_written_as_a_loop(options, n, alpha, beta, k, channels, x64):
    a = np.random.default_rng(0).normal(0, 100, (2, 3, 2, channels))  # large, so that the sum outweighs k
    b = np.empty_like(a)
    for i in range(channels):
        total = 0
        for j in range(max(0, i - n // 2), min(channels - 1, i + n // 2) + 1):
            total = total + a[..., j] ** 2
        b[..., i] = a[..., i] / (k + alpha * total) ** beta
    normalize = jax.jit(functools.partial(local_response_norm, **options))
    np.testing.assert_allclose(normalize(a), b, rtol=1e-12)
    np.testing.assert_allclose(normalize(a[0, 0]), b[0, 0], rtol=1e-12)


def test_gradient_is_the_quotient_of_differences(x64):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(0, 2, (1, 2, 1, 7)), rng.normal(size=(1, 2, 1, 7))

    def total(x):
        return (weights * local_response_norm(x, alpha=0.3)).sum()

    step = 1e-5 * np.eye(x.size).reshape(x.size, *x.shape)
    above, below = jax.jit(lambda x: (jax.vmap(total)(x + step), jax.vmap(total)(x - step)))(x)
    differences = ((above - below) / 2e-5).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), differences, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("n", [1, 4, 5])
def test_values_and_gradients_are_those_of_the_formula(n, dtype, tolerance, x64):
    """The formula as JAX differentiates it, in double precision, with XLA's own windows."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(0, 3, (2, 2, 3, 3, 11)).astype(dtype)

    def formula(x):
        sums = jax.lax.reduce_window(
            x**2, 0.0, jax.lax.add, (1, 1, 1, n), (1, 1, 1, 1), [(0, 0)] * 3 + [(n // 2, (n - 1) // 2)]
        )
        return x / (2 + 0.3 * sums) ** 0.75

    found, transpose = jax.vjp(jax.jit(functools.partial(local_response_norm, size=n, alpha=0.3)), x)
    expected, exact_transpose = jax.vjp(formula, x.astype(np.float64))
    for one, other in [
        (found, expected),
        (transpose(cotangent)[0], exact_transpose(cotangent.astype(np.float64))[0]),
    ]:
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def test_gradient_is_finite_where_all_is_zero():
    assert np.isfinite(jax.jit(jax.grad(lambda x: local_response_norm(x).sum()))(jnp.zeros((1, 1, 1, 8)))).all()


def test_bfloat16_stays_bfloat16_and_near_the_exact_value():
    exact = jnp.asarray(30 * formula.values("bfloat16", (2, 2, 2, 16)), jnp.bfloat16)
    normalize = jax.jit(functools.partial(local_response_norm, alpha=1e-2))
    rounded = normalize(exact)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), normalize(exact.astype(jnp.float32)), rtol=0.03)


def test_half_precision_does_not_overflow():
    x = jnp.full((1, 1, 1, 8), 300, jnp.float16)
    out = local_response_norm(x)
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(out.astype(jnp.float32), local_response_norm(x.astype(jnp.float32)), rtol=1e-3)
