"""Convolution: values and gradients of the stock operation, for every kind of layer of the networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.ops.convolution import by_accelerator, convolution
from flaxcnn.ops.geometry import Geometry
from flaxcnn.ops.lax_convolution import stock
from tests.marks import sampled

PLAIN = (7, 6, 3, 3, 5, 1, 1, 1)
GROUPED = (6, 5, 80, 3, 80, 2, 1, 10)
DEPTHWISE = (12, 13, 32, 3, 32, 1, 1, 32)
# (height, width, channels, kernel size, features, stride, padding, groups)
CASES = [
    (7, 6, 3, 1, 5, 1, 0, 1),
    (7, 6, 3, 1, 5, 2, 0, 1),
    (8, 9, 3, 1, 5, 3, 1, 1),
    PLAIN,
    (8, 6, 3, 3, 5, 2, 1, 1),
    (9, 9, 1, 5, 6, 1, 2, 1),
    (11, 14, 3, 7, 4, 2, 3, 1),
    (17, 15, 3, 11, 4, 4, 2, 1),
    (28, 28, 1, 5, 6, 1, 2, 1),
    (14, 13, 6, 5, 16, 1, 0, 1),
    (13, 9, 2, 3, 4, 2, 1, 1),
    (10, 11, 2, 3, 4, 3, 0, 1),  # narrow, with pixels that no window sees
    (90, 130, 2, 5, 4, 3, 2, 1),
    (5, 4, 24, 3, 20, 1, 1, 1),
    (9, 8, 24, 3, 20, 2, 1, 1),
    (9, 8, 24, 5, 20, 3, 0, 1),
    (8, 10, 24, 2, 20, 3, 1, 1),  # pixels that no window sees
    (6, 5, 64, 3, 7, 1, 1, 1),
    (6, 5, 64, 3, 7, 2, 0, 1),
    (6, 5, 64, 3, 7, 1, 0, 1),
    (6, 5, 8, 3, 8, 1, 1, 4),
    GROUPED,
    (9, 8, 32, 3, 16, 2, 1, 4),
    (5, 5, 96, 3, 48, 1, 1, 2),
    (5, 5, 70, 3, 140, 1, 1, 70),  # depthwise, two features each
    DEPTHWISE,
    (9, 9, 24, 7, 24, 1, 3, 24),
    (5, 6, 40, 1, 20, 1, 0, 4),
    (7, 6, 40, 1, 20, 2, 0, 4),
    (3, 3, 512, 1, 4, 1, 0, 1),
    (1, 1, 64, 2, 32, 2, 1, 4),  # places of the kernel that see no pixel
    (8, 1, 16, 3, 8, 4, 1, 4),
    (2, 3, 24, 7, 16, 3, 3, 1),
    (2, 1, 128, 1, 100, 1, 0, 1),  # more numbers in the kernel than positions
    (24, 24, 64, 3, 64, 1, 1, 1),  # large ones, for several cores
    (40, 40, 64, 3, 64, 1, 1, 4),
    (56, 56, 32, 3, 32, 2, 1, 32),
]
TYPICAL = [case for case in CASES if case[2] in (24, 32, 64, 80) and case[4] > 7]


def arguments(height, width, channels, size, features, stride, padding, groups, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, height, width, channels)).astype(dtype)
    kernel = rng.normal(size=(size, size, channels // groups, features)).astype(dtype)
    fields = {"window_strides": (stride, stride), "padding": [(padding, padding)] * 2}
    return x, kernel, fields | {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}


def value_and_gradients(convolve, x, kernel):
    def run(x, kernel):
        y, transpose = jax.vjp(convolve, x, kernel)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=np.float32)).astype(y.dtype).reshape(y.shape)
        return y, *transpose(cotangent)

    return jax.jit(run)(x, kernel)


@pytest.mark.parametrize(
    ("case", "dtype", "tolerance"),
    [
        *((case, "float32", 1e-5) for case in CASES),
        *((case, "bfloat16", 2e-2) for case in TYPICAL),
        *sampled([(case, "bfloat16", 2e-2) for case in CASES if case not in TYPICAL], every=len(CASES)),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_stock_convolution_in_double_precision(case, dtype, tolerance, x64):
    x, kernel, fields = arguments(*case, np.float32)
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    found = value_and_gradients(functools.partial(convolution, **fields), x, kernel)
    stock_one = functools.partial(jax.lax.conv_general_dilated, **fields)
    expected = value_and_gradients(stock_one, x.astype(np.float64), kernel.astype(np.float64))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == dtype
        np.testing.assert_allclose(one.astype(np.float64), other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("case", [CASES[1], PLAIN, CASES[8], CASES[19]], ids=str)
def test_gradients_of_gradients_and_batches_of_kernels(case, x64):
    x, kernel, fields = arguments(*case, np.float64)

    def curvature(convolve, x, kernel):
        def slope(x, kernel):
            gradients = jax.grad(lambda x, kernel: jnp.tanh(convolve(x, kernel, **fields)).sum(), (0, 1))(x, kernel)
            return sum((gradient**2).sum() for gradient in gradients)

        return jax.grad(slope, (0, 1))(x, kernel)

    kernels = np.stack([kernel, 2 * kernel])
    results = [
        jax.jit(jax.vmap(functools.partial(curvature, convolve), (None, 0)))(x, kernels)
        for convolve in (convolution, jax.lax.conv_general_dilated)
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10 * np.abs(other).max())


def test_accelerators_get_one_convolution_for_all_groups():
    x, kernel, fields = arguments(*GROUPED, np.float32)
    gradients = jax.jit(functools.partial(value_and_gradients, functools.partial(convolution, **fields)))
    assert len(convolutions(gradients, x, kernel, platform="cuda")) == 3  # forward, and a gradient for each array


@pytest.mark.parametrize("size", [12, 13, 15, 16, 22])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(7, 2, 3), (7, 2, 0), (11, 4, 2), (11, 4, 0), (3, 2, 1), (3, 3, 2), (2, 2, 0)]
)
def test_pixels_folded_into_channels(window, stride, padding, size, x64):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, size, size + 1, 3)), rng.normal(size=(window, window, 3, 5))
    geometry = Geometry((stride, stride), ((padding, padding), (padding, padding + 1)))
    found = value_and_gradients(functools.partial(by_accelerator, geometry=geometry), x, kernel)
    expected = value_and_gradients(functools.partial(stock, geometry=geometry), x, kernel)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * np.abs(other).max())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32])
def test_accelerators_get_a_stem_of_twelve_channels(dtype):
    x, kernel = jnp.zeros((2, 32, 32, 3), dtype), jnp.zeros((7, 7, 3, 8), dtype)
    stem = jax.jit(lambda x, kernel: convolution(x, kernel, (2, 2), [(3, 3), (3, 3)]))
    (line,) = convolutions(stem, x, kernel, platform="cuda")
    assert "x16x16x12x" in line and "4x4x12x8x" in line
    (line,) = convolutions(stem, x, kernel, platform="cpu")
    assert "x32x32x3x" in line and "7x7x3x8x" in line


def convolutions(function, *arguments, platform):
    text = jax.export.export(function, platforms=[platform])(*arguments).mlir_module()
    return [line for line in text.splitlines() if "stablehlo.convolution" in line]


@pytest.mark.parametrize("fields", [{"lhs_dilation": (2, 2)}, {"rhs_dilation": (1, 2)}])
def test_dilation_is_refused(fields):
    with pytest.raises(ValueError, match="undilated"):
        convolution(jnp.zeros((1, 4, 4, 1)), jnp.zeros((2, 2, 1, 1)), (1, 1), [(0, 0), (0, 0)], **fields)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], PLAIN, CASES[8], GROUPED], ids=str)
def test_the_number_of_images_may_be_open(case):
    x, kernel, fields = arguments(*case, np.float32)
    run = jax.jit(lambda x: value_and_gradients(functools.partial(convolution, **fields), x, kernel))
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), *x.shape[1:]), x.dtype)
    program = jax.export.export(run)(images)
    for one, other in zip(program.call(x), run(x), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
