"""Pooling: values as torch computes them, gradients against plain loops, and what is refused."""

import functools
import itertools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.ops import adaptive_average_pool, average_pool, global_average_pool, max_pool
from tests.reference import formula

RECORDED = json.loads(Path(formula.__file__).with_name("pooling.json").read_text())
# One program computes all cases of a window: they share most of their work.
GROUPS = {}
for _case in RECORDED:
    if not _case.startswith("lrn"):
        GROUPS.setdefault(_case.partition(" ceil")[0].removesuffix(" nopad"), []).append(_case)
SIZES = range(1, 41)
FEW = (*range(1, 15), 25, 40)
# Programs that run once are better compiled soon than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def operation(case):
    """The function that a case of the recording names."""
    kind, *words = case.split()
    if kind == "adaptive":
        return functools.partial(adaptive_average_pool, output_size=tuple(map(int, words[0].split("x"))))
    window, stride, padding = (int(word[1:]) for word in words[:3])
    pool = max_pool if kind == "max" else functools.partial(average_pool, count_include_pad="nopad" not in words)
    return functools.partial(pool, window=window, stride=stride, padding=padding, ceil_mode="ceil" in words)


def attempt(pool, x):
    try:
        return pool(x)
    except UserError:
        return None


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(FEW, id="few"),
        pytest.param(sorted({*SIZES} - {*FEW}), id="rest", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("group", GROUPS)
def test_values_and_refusals_are_those_of_torch(group, sizes, x64):
    inputs = [formula.values(f"pooling{n}", (1, n, n, 3)) for n in sizes]
    pools = {case: operation(case) for case in GROUPS[group]}
    program = jax.jit(lambda inputs: {case: [attempt(pool, x) for x in inputs] for case, pool in pools.items()})
    for case, outputs in program.lower(inputs).compile(QUICK)(inputs).items():
        for n, output in zip(sizes, outputs, strict=True):
            recorded, which = RECORDED[case][n - 1], f"{case} of {n} pixels"
            assert (output is None) == (recorded is None), which
            if recorded is not None:
                height, width, *prints = recorded
                assert output.shape == (1, height, width, 3), which
                assert output.dtype == jnp.float64
                found = formula.fingerprint(output)[:2]
                np.testing.assert_allclose(found, prints, rtol=1e-10, atol=1e-14, err_msg=which)


def test_recording_holds_every_case_at_every_size():
    assert sum(map(len, GROUPS.values())) == 47
    assert {len(recorded) for recorded in RECORDED.values()} == {len(SIZES)}


def gradient(pool, x, cotangent):
    return jax.jit(lambda x, cotangent: jax.vjp(pool, x)[1](cotangent)[0])(x, cotangent)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((2, 5), id="few"),
        pytest.param(range(1, 21), id="all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_gradients_of_maxima_are_linens_bit_for_bit(window, stride, sizes):
    """Of few values, minus infinity among them, so that windows hold equals and are empty but for padding."""
    rng = np.random.default_rng(0)
    cases, inputs = [], []
    for padding, size, ceil_mode in itertools.product(range(window // 2 + 1), sizes, (False, True)):
        shape = (2, size, size + 3, 2)
        pool = functools.partial(max_pool, window=window, stride=stride, padding=padding, ceil_mode=ceil_mode)
        if (out := attempt(lambda x, pool=pool: jax.eval_shape(pool, x), np.zeros(shape, np.float32))) is None:
            continue
        ends = [
            (padding, max((count - 1) * stride + window - length - padding, 0))
            for count, length in zip(out.shape[1:3], shape[1:3], strict=True)
        ]
        stock = functools.partial(nn.max_pool, window_shape=(window,) * 2, strides=(stride,) * 2, padding=ends)
        cases.append((pool, stock))
        inputs.append((rng.choice(np.float32([-np.inf, -1, 0, 2]), shape), rng.normal(size=out.shape).astype("f")))

    def run(inputs):
        return [
            [(pool(x), jax.vjp(pool, x)[1](cotangent)[0]) for pool in pools]
            for pools, (x, cotangent) in zip(cases, inputs, strict=True)
        ]

    assert cases
    for found, expected in jax.jit(run).lower(inputs).compile(QUICK)(inputs):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(one).view(np.int32), np.asarray(other).view(np.int32))


@pytest.mark.parametrize(("height", "width", "padding", "out"), [(6, 8, 0, (3, 4)), (8, 7, 1, (5, 4))])
def test_gradient_of_a_maximum_goes_to_the_first_of_equals(height, width, padding, out, x64):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, height, width, 3)).astype(float)  # few values, so that most windows hold equals
    cotangent = rng.normal(size=(2, *out, 3))
    expected = np.zeros_like(x)
    for b, i, j, c in np.ndindex(cotangent.shape):
        rows = [r for r in range(2 * i - padding, 2 * i - padding + 3) if 0 <= r < height]
        columns = [s for s in range(2 * j - padding, 2 * j - padding + 3) if 0 <= s < width]
        largest, first = -np.inf, None
        for r in rows:
            for s in columns:
                if x[b, r, s, c] > largest:
                    largest, first = x[b, r, s, c], (b, r, s, c)
        expected[first] += cotangent[b, i, j, c]
    pool = functools.partial(max_pool, window=3, stride=2, padding=padding, ceil_mode=True)
    np.testing.assert_allclose(gradient(pool, x, cotangent), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("pool", "rows", "columns"),
    [
        # Bins of 8 rows and 5 columns, written out.
        (
            functools.partial(adaptive_average_pool, output_size=(3, 2)),
            [(0, 3), (2, 6), (5, 8)],
            [(0, 3), (2, 5)],
        ),
        (
            functools.partial(adaptive_average_pool, output_size=(2, 7)),
            [(0, 4), (4, 8)],
            [(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)],
        ),
        (
            functools.partial(average_pool, window=3, stride=2, ceil_mode=True),
            [(0, 3), (2, 5), (4, 7), (6, 8)],
            [(0, 3), (2, 5)],
        ),
        (
            functools.partial(average_pool, window=3, stride=2, padding=1, count_include_pad=False),
            [(0, 2), (1, 4), (3, 6), (5, 8)],
            [(0, 2), (1, 4), (3, 5)],
        ),
        (functools.partial(average_pool, window=2, stride=2), [(0, 2), (2, 4), (4, 6), (6, 8)], [(0, 2), (2, 4)]),
        (functools.partial(global_average_pool, keepdims=True), [(0, 8)], [(0, 5)]),
    ],
    ids=["adaptive smaller", "adaptive wider", "average ceil", "average nopad", "average side by side", "global"],
)
def test_gradient_of_a_mean_spreads_evenly_over_its_bin(pool, rows, columns, x64):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 8, 5, 3)), rng.normal(size=(2, len(rows), len(columns), 3))
    values, expected = np.zeros_like(cotangent), np.zeros_like(x)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            values[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
            part = cotangent[:, i : i + 1, j : j + 1] / ((bottom - top) * (right - left))
            expected[:, top:bottom, left:right] += part
    np.testing.assert_allclose(jax.jit(pool)(x), values, rtol=1e-12)
    np.testing.assert_allclose(gradient(pool, x, cotangent), expected, rtol=1e-12)


def test_large_windows():
    x = formula.values("large", (2, 18, 9, 3)).astype(np.float32)
    np.testing.assert_allclose(average_pool(x, 9, 9)[:, 1, 0], x[:, 9:].mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(max_pool(x, 9, 1, padding=4)[:, 13, 4], x[:, 9:].max((1, 2)))


def test_ceil_mode_drops_a_window_that_starts_beyond_the_feature_map():
    # Windows start at -1, 1 and 3 of 3 pixels; the last would see padding alone. The values are torch's.
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    window = {"window": 2, "stride": 2, "padding": 1, "ceil_mode": True}
    for pooled, expected in (
        (max_pool(x, **window), [[0, 2], [6, 8]]),
        (average_pool(x, **window), [[0, 0.75], [2.25, 6]]),
        (average_pool(x, **window, count_include_pad=False), [[0, 1.5], [4.5, 6]]),
    ):
        np.testing.assert_allclose(pooled[0, :, :, 0], expected, rtol=1e-6)
    # Windows start at 0 and 3 of 3 pixels.
    assert max_pool(x, 2, 3, ceil_mode=True).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("pool", [max_pool, average_pool])
@pytest.mark.parametrize("shape", [(1, 2, 9, 1), (1, 9, 2, 1)])
def test_a_window_larger_than_the_feature_map_is_refused(pool, shape):
    message = "^a window of 5 does not fit a feature map of 2 pixels: the images are too small$"
    with pytest.raises(UserError, match=message):
        pool(jnp.zeros(shape), 5, 2, padding=1)
    assert pool(jnp.zeros(shape), 5, 2, padding=2).shape == tuple({9: 5, 2: 1}.get(size, 1) for size in shape)


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_feature_maps_without_a_batch_are_refused(pool):
    with pytest.raises(ValueError, match=r"\(batch, height, width, channels\), got \(4, 4, 1\)"):
        pool(jnp.zeros((4, 4, 1)), 2, 2)


def test_a_feature_map_of_the_wanted_size_is_left_alone():
    x = jnp.ones((1, 5, 3, 2))
    assert adaptive_average_pool(x, (5, 3)) is x
    assert adaptive_average_pool(x, (3, 5)).shape == (1, 3, 5, 2)


@pytest.mark.parametrize(
    ("pool", "rounding"),
    [
        (functools.partial(max_pool, window=3, stride=2, padding=1, ceil_mode=True), 0),
        (functools.partial(average_pool, window=3, stride=2, padding=1, ceil_mode=True), 2**-8),
        (functools.partial(average_pool, window=25, stride=1), 2**-8),
        (functools.partial(adaptive_average_pool, output_size=(5, 3)), 2**-7),  # by rows, then by columns
        (global_average_pool, 2**-8),
    ],
    ids=["max", "average", "average of many", "adaptive", "global"],
)
def test_bfloat16_stays_bfloat16_and_is_rounded_at_the_end_alone(pool, rounding):
    x = jnp.asarray(formula.values("bfloat16", (2, 26, 26, 3)) + 2, jnp.bfloat16)
    rounded, exact = jax.jit(lambda x: (pool(x), pool(x.astype(jnp.float32))))(x)
    assert rounded.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=rounding)
