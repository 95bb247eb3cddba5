"""The stock twins compute what our operations compute, and nothing of ours stays in a stock network."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from benchmarks import operations, stock
from benchmarks.networks import NETWORKS
from tests.marks import sampled

ALL = sorted({name for networks in NETWORKS.values() for name in networks})
# At small sizes and with few blocks, each operation, and each way to call it, that takes part in the comparison.
SMALL = {
    "lenet5": (28, {}),
    "alexnet_2012": (71, {"hidden": 16}),
    "vgg11": (40, {"hidden": 16}),
    "resnext50_32x4d": (33, {"depths": (1, 1), "widths": (64, 128)}),
    "densenet121": (33, {"depths": (1, 1)}),
}


def logits(name, size, fields):
    """Those of the stock twin, and ours."""
    model = flaxcnn.create_model(name, num_classes=5, **fields)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, size, size, flaxcnn.model_info(name).input_shape[2]), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), images, train=False))

    def scaled(shape):  # so that signals neither die nor grow; variances are positive
        fan_in = math.prod(shape.shape[:-1])
        return (1 if len(shape.shape) == 1 else fan_in**-0.5) * rng.uniform(0.5, 1.5, shape.shape).astype(
            np.float32
        )

    signs = {"kernel": lambda leaf: leaf * rng.choice([-1, 1], leaf.shape).astype(np.float32)}
    variables = jax.tree_util.tree_map_with_path(
        lambda path, shape: signs.get(path[-1].key, lambda leaf: leaf)(scaled(shape)), shapes
    )

    def apply(model):
        return jax.jit(lambda variables: model.apply(variables, images, train=False))(variables)

    expected = apply(model)
    with stock.operations():
        return apply(stock.network(model)), expected


@pytest.mark.parametrize("name", SMALL)
def test_stock_networks_have_our_logits(name):
    stock.assert_close(*logits(name, *SMALL[name]), 1e-5)


@pytest.mark.parametrize("name", sampled(ALL, every=3))
def test_whole_stock_networks_have_our_logits(name):
    stock.assert_close(*logits(name, 28 if name == "lenet5" else 64, {}), 1e-4)


@pytest.mark.parametrize("name", [*SMALL, "googlenet"])
def test_nothing_of_ours_stays_in_a_stock_network(name):
    """Our operations have gradients of their own; those of Flax and JAX have none."""
    model = stock.network(flaxcnn.create_model(name, **SMALL.get(name, (None, {}))[1]))
    images = jax.ShapeDtypeStruct((1, *flaxcnn.model_info(name).input_shape), jnp.float32)
    ours = {operation for _, _, operation in stock.used()}
    with stock.operations():
        assert not ours & {operation for _, _, operation in stock.used()}
        program = jax.make_jaxpr(lambda images: model.init(jax.random.key(0), images, train=False))(images)
    assert "custom_vjp" not in str(program)
    assert {operation for _, _, operation in stock.used()} == ours


def test_an_operation_without_a_twin_is_named():
    def new_operation(x):
        return x

    with pytest.raises(NotImplementedError, match="new_operation"):
        stock.twin(new_operation)


def test_pooling_twins_have_torchs_windows():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    assert stock.max_pool(x, 2, 2)[0, ..., 0].tolist() == [[6, 8], [16, 18]]
    assert stock.max_pool(x, 2, 2, ceil_mode=True)[0, ..., 0].tolist() == [[6, 8, 9], [16, 18, 19], [21, 23, 24]]
    # A third window would start in the padding after the map.
    assert stock.max_pool(x, 2, 3, padding=1, ceil_mode=True)[0, ..., 0].tolist() == [[0, 3], [15, 18]]
    assert stock.average_pool(x, 2, 2)[0, ..., 0].tolist() == [[3, 5], [13, 15]]
    # Bins 0 to 2 and 2 to 4.
    np.testing.assert_allclose(stock.adaptive_average_pool(x, (2, 1))[0, ..., 0], [[7], [17]], rtol=1e-6)


def test_the_formula_of_local_response_normalisation():
    x = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    result = stock.local_response_norm(jnp.asarray(x), size=3, alpha=0.1, beta=0.5, k=1.0)
    sums = np.array([1 + 4, 1 + 4 + 9, 4 + 9 + 16, 9 + 16])
    np.testing.assert_allclose(result, x / np.sqrt(1 + 0.1 * sums), rtol=1e-6)


def test_the_calls_of_a_network_are_told_apart_by_everything_that_matters():
    assert "max_pool(4x112x112x64, 3, 2, padding=1)" in operations.collect("resnet18", 4, "float32")
    googlenet = operations.collect("googlenet", 4, "float32")
    assert "max_pool(4x112x112x64, 3, 2, ceil_mode=True)" in googlenet
    assert "max_pool(4x14x14x512, 3, 1, padding=1)" in googlenet
    # The pooling that LeNet-5 holds in a field.
    calls = operations.collect("lenet5", 4, "bfloat16")
    assert calls["average_pool(4x28x28x6, window=2, stride=2)"].shapes[0].dtype == jnp.bfloat16
    # AlexNet's last map has the size already to which it would be pooled.
    assert not any("adaptive" in call for call in operations.collect("alexnet", 1, "float32"))


def test_a_call_is_measured_forward_and_with_its_gradient():
    call = operations.collect("alexnet", 2, "float32")["max_pool(2x55x55x64, 3, 2)"]
    for part in operations.PARTS:
        found = operations.measure(call, part, seconds=0.02)
        assert found["ours_milliseconds"] > 0
        low, median, high = found["speed_of_ours"]
        assert low <= median <= high


def test_a_call_that_differs_from_its_twin_is_not_measured(monkeypatch):
    call = operations.collect("lenet5", 2, "float32")["average_pool(2x10x10x16, window=2, stride=2)"]
    monkeypatch.setattr(stock, "average_pool", lambda x, window, stride: 1.01 * x[:, ::stride, ::stride])
    with pytest.raises(AssertionError, match="off by"):
        operations.measure(call, "forward", seconds=0.02)
