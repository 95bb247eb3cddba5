"""LeNet-5: counts as published, values against plain NumPy and SciPy, and the contract of a model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import correlate2d

from flaxcnn import UserError, create_model
from flaxcnn.models import lenet
from flaxcnn.models.batch_norm import BatchNorm
from tests.variables import random_images, random_variables

# Columns of table I of the paper: the maps of S2 that feed C3 maps 0 to 15.
PAPER_TABLE_I = [
    "X...XXX..XXXX.XX",
    "XX...XXX..XXXX.X",
    "XXX...XXX..X.XXX",
    ".XXX..XXXX..X.XX",
    "..XXX..XXXX.XX.X",
    "...XXX..XXXX.XXX",
]


def init(model, shape):
    return jax.jit(lambda images: model.init(jax.random.key(0), images, train=False))(jnp.zeros(shape))


def apply(model, variables, images, **kwargs):
    return jax.jit(lambda v, x: model.apply(v, x, **{"train": False, **kwargs}))(variables, images)


def sizes(params):
    return {name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in params.items()}


def test_lenet5_has_the_parameters_of_the_textbook_layer_by_layer():
    params = random_variables(create_model("lenet5"), (1, 28, 28, 1))["params"]
    assert sizes(params) == {"conv1": 156, "conv2": 2416, "fc1": 48120, "fc2": 10164, "head": 850}
    assert sum(sizes(params).values()) == 61706


def test_lenet5_1998_has_the_trainable_parameters_of_the_paper_layer_by_layer():
    variables = random_variables(create_model("lenet5_1998"), (1, 32, 32, 1))
    assert sizes(variables["params"]) == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert sum(sizes(variables["params"]).values()) == 60000
    assert set(variables) == {"params"}


def test_c3_connections_are_table_i_of_the_paper():
    drawn = tuple(tuple(i for i in range(6) if PAPER_TABLE_I[i][j] == "X") for j in range(16))
    assert drawn == lenet.C3_CONNECTIONS


def test_lenet5_1998_equals_its_definition_written_out_in_numpy(x64):
    model = create_model("lenet5_1998", dtype="float64", param_dtype="float64")
    params = random_variables(model, (1, 32, 32, 1))["params"]
    image = np.asarray(random_images(32, 32))

    def squash(x):
        return 1.7159 * np.tanh(2 / 3 * x)

    def subsample(maps, layer):
        summed = [m[0::2, 0::2] + m[0::2, 1::2] + m[1::2, 0::2] + m[1::2, 1::2] for m in maps]
        return [squash(c * m + b) for m, c, b in zip(summed, layer["coefficient"], layer["bias"], strict=True)]

    p = jax.tree.map(np.asarray, params)
    c1, c5 = p["c1"]["conv"], p["c5"]["conv"]
    maps = [squash(correlate2d(image, c1["kernel"][:, :, 0, j], "valid") + c1["bias"][j]) for j in range(6)]
    maps = subsample(maps, p["s2"])
    c3, connection = [], 0
    for j in range(16):
        total = p["c3"]["bias"][j]
        for i in range(6):
            if PAPER_TABLE_I[i][j] == "X":
                # The kernel lists connections by output map, and within one in the order of its table entry.
                at = connection + lenet.C3_CONNECTIONS[j].index(i)
                total = total + correlate2d(maps[i], p["c3"]["kernel"][:, :, at], "valid")
        connection += len(lenet.C3_CONNECTIONS[j])
        c3.append(squash(total))
    maps = subsample(c3, p["s4"])
    x = squash(np.einsum("ijk,ijkn->n", np.stack(maps, -1), c5["kernel"]) + c5["bias"])
    f6 = squash(x @ p["f6"]["kernel"] + p["f6"]["bias"])
    expected = -np.square(f6 - lenet.class_codes(10)).sum(-1)

    logits = apply(model, {"params": params}, image[None, :, :, None])
    assert logits.dtype == jnp.float64
    np.testing.assert_allclose(logits[0], expected, rtol=1e-12)


def test_lenet5_equals_its_definition_written_out_in_numpy(x64):
    model = create_model("lenet5", dtype="float64", param_dtype="float64")
    params = random_variables(model, (1, 28, 28, 3))["params"]
    image = np.asarray(random_images(28, 28, 3))
    p = jax.tree.map(np.asarray, params)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def conv_pool(x, layer, padding):
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        kernel, bias = layer["kernel"], layer["bias"]
        maps = [
            sum(correlate2d(x[..., i], kernel[:, :, i, o], "valid") for i in range(x.shape[-1])) + bias[o]
            for o in range(kernel.shape[-1])
        ]
        x = sigmoid(np.stack(maps, -1))
        return (x[0::2, 0::2] + x[0::2, 1::2] + x[1::2, 0::2] + x[1::2, 1::2]) / 4

    x = conv_pool(conv_pool(image, p["conv1"]["conv"], 2), p["conv2"]["conv"], 0).reshape(-1)
    for name in ("fc1", "fc2"):
        x = sigmoid(x @ p[name]["kernel"] + p[name]["bias"])
    expected = x @ p["head"]["kernel"] + p["head"]["bias"]
    logits = apply(model, {"params": params}, image[None])
    np.testing.assert_allclose(logits[0], expected, rtol=1e-12)


def test_squash_maps_one_to_one():
    np.testing.assert_allclose(lenet.squash(jnp.array([-1.0, 0.0, 1.0])), [-1, 0, 1], atol=1e-4)


def test_initial_weights_of_1998_are_uniform_by_fan_in():
    params = init(create_model("lenet5_1998"), (1, 32, 32, 3))["params"]
    fan_in = {"c1": 75, "s2": 4, "s4": 4, "c5": 400, "f6": 120}
    for name, inputs in fan_in.items():
        values = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params[name])])
        assert np.abs(values).max() <= 2.4 / inputs
        assert values.std() == pytest.approx(2.4 / inputs / math.sqrt(3), rel=3 / math.sqrt(values.size))
    start = 0
    for inputs in lenet.C3_CONNECTIONS:
        own = np.asarray(params["c3"]["kernel"][:, :, start : start + len(inputs)])
        assert np.abs(own).max() <= 2.4 / (25 * len(inputs))
        assert own.std() == pytest.approx(2.4 / (25 * len(inputs)) / math.sqrt(3), rel=0.35)
        start += len(inputs)


def test_initial_weights_of_lenet5_are_glorot_uniform_with_zero_biases():
    params = init(create_model("lenet5"), (1, 28, 28, 1))["params"]
    fans = {"conv1": (25, 150), "conv2": (150, 400), "fc1": (400, 120), "fc2": (120, 84), "head": (84, 10)}
    for name, (fan_in, fan_out) in fans.items():
        layer = params[name]["conv"] if name.startswith("conv") else params[name]
        kernel, bound = np.asarray(layer["kernel"]), math.sqrt(6 / (fan_in + fan_out))
        assert np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=2 / math.sqrt(kernel.size))
        assert not layer["bias"].any()


def test_class_codes_are_distinct_bitmaps_and_random_beyond_the_digits():
    codes = lenet.class_codes(26)
    assert codes.shape == (26, 84)
    assert set(np.unique(codes)) == {-1.0, 1.0}
    differing = (codes[:, None] != codes[None]).sum(-1) + 84 * np.eye(26, dtype=int)
    assert differing.min() >= 5
    np.testing.assert_array_equal(lenet.class_codes(7), codes[:7])
    one = codes[1].reshape(12, 7) > 0
    assert one[:10, 3].all() and one[:10, 4].all() and not one[10:].any()


@pytest.mark.parametrize("name", ["lenet5", "lenet5_1998"])
@pytest.mark.parametrize(("channels", "num_classes"), [(1, 0), (3, 7), (4, 12)])
def test_channels_classes_and_sizes(name, channels, num_classes):
    model = create_model(name, num_classes=num_classes)

    @jax.jit
    def differentiate(variables, images):
        logits, gradient = jax.vjp(lambda v: model.apply(v, images, train=True), variables)
        return logits, gradient(logits)

    for size in ({"lenet5": 12, "lenet5_1998": 32}[name], 37):
        images = random_images(2, size, size + 3, channels)
        logits, gradients = differentiate(random_variables(model, images.shape), images)
        assert logits.shape == (2, num_classes or 84)
        for leaf in jax.tree.leaves(gradients):
            assert np.isfinite(leaf).all() and np.any(leaf)


@pytest.mark.parametrize(("name", "size"), [("lenet5", 11), ("lenet5_1998", 31)])
def test_images_below_the_minimum_are_refused(name, size):
    with pytest.raises(UserError, match=f"at least {size + 1}x{size + 1} pixels, got {size}x40"):
        random_variables(create_model(name), (1, size, 40, 1))


@pytest.mark.parametrize("name", ["lenet5", "lenet5_1998"])
def test_logits_are_float32_whatever_the_computation(name):
    model = create_model(name, dtype="bfloat16")
    variables = random_variables(model, (1, 32, 32, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, exact = (apply(m, variables, jnp.ones((2, 32, 32, 1))) for m in (model, create_model(name)))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, rtol=0.05, atol=0.05 * np.abs(exact).max())


def test_features_are_the_maps_of_each_stage():
    expected = {"lenet5": {"pool1": (14, 14, 6), "pool2": (5, 5, 16)}}
    expected["lenet5_1998"] = {"s2": (14, 14, 6), "s4": (5, 5, 16), "c5": (1, 1, 120)}
    for name, size in (("lenet5", 28), ("lenet5_1998", 32)):
        model = create_model(name)
        variables = random_variables(model, (1, size, size, 1))
        maps = apply(model, variables, jnp.ones((2, size, size, 1)), method="features")
        assert {stage: leaf.shape[1:] for stage, leaf in maps.items()} == expected[name]


def test_activation_and_pooling_are_used():
    images = random_images(2, 28, 28, 1)
    variables = random_variables(create_model("lenet5"), images.shape)
    outputs = [
        apply(create_model("lenet5", activation=activation, pooling=pooling), variables, images)
        for activation in ("sigmoid", "relu")
        for pooling in ("average", "max")
    ]
    for i in range(4):
        for j in range(i):
            assert not np.allclose(outputs[i], outputs[j])


def test_batch_norm_keeps_running_statistics_with_momentum_nine_tenths():
    model = create_model("lenet5", norm="batch_norm")
    images = random_images(8, 28, 28, 1)
    variables = random_variables(model, images.shape)
    assert set(variables["batch_stats"]) == {"conv1", "conv2", "fc1_norm", "fc2_norm"}
    _, updated = apply(model, variables, images, train=True, mutable=["batch_stats"])
    conv = variables["params"]["conv1"]["conv"]
    windows = sliding_window_view(np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), (5, 5), axis=(1, 2))
    maps = np.einsum("bhwcij,ijcn->bhwn", windows, conv["kernel"]) + conv["bias"]
    before, after = (tree["batch_stats"]["conv1"]["norm"] for tree in (variables, updated))
    mean, var = np.mean(maps, (0, 1, 2)), np.var(maps, (0, 1, 2))
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * var, rtol=1e-4)


def test_batch_norm_is_the_batch_in_training_and_the_average_in_evaluation():
    model = create_model("lenet5", norm=BatchNorm)
    images = random_images(8, 28, 28, 1)
    variables = random_variables(model, images.shape)
    train, _ = apply(model, variables, images, train=True, mutable=["batch_stats"])
    alone = apply(model, variables, images[:1])
    np.testing.assert_allclose(alone, apply(model, variables, images)[:1], rtol=1e-4)
    assert not np.allclose(train[:1], alone, rtol=1e-3)


def test_synchronized_batch_norm_sees_the_whole_batch():
    images = random_images(8, 28, 28, 1)
    whole = create_model("lenet5", norm="batch_norm")
    split = create_model("lenet5", norm="batch_norm", bn_axis_name="devices")
    variables = random_variables(whole, images.shape)

    def train(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    expected, _ = jax.jit(lambda x: train(whole, x))(images)
    shards = jax.jit(jax.vmap(lambda x: train(split, x), axis_name="devices"))(images.reshape(4, 2, 28, 28, 1))
    np.testing.assert_allclose(shards[0].reshape(8, -1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_other_norms_can_be_injected(norm):
    model = create_model("lenet5", norm=norm)
    images = random_images(2, 28, 28, 1)
    variables = random_variables(model, images.shape)
    assert set(variables) == {"params"} and "fc2_norm" in variables["params"]
    np.testing.assert_array_equal(apply(model, variables, images, train=True), apply(model, variables, images))
