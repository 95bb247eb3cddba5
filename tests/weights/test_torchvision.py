"""Our networks against torchvision's: values recorded by `tests/reference/record_torchvision.py`."""

import functools
import json
import math
import zlib
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn import create_model
from flaxcnn.models.cost import measure
from flaxcnn.models.published import PUBLISHED
from flaxcnn.weights import from_torch, to_torch
from flaxcnn.weights.convert import torch_shapes
from tests.marks import sampled
from tests.reference import formula

RECORDED = Path(__file__).parent.parent / "reference"
FORWARD = json.loads((RECORDED / "forward.json").read_text())
STEP = json.loads((RECORDED / "step.json").read_text())
DOUBLE = {"dtype": "float64", "param_dtype": "float64"}
# A net of each family and each kind of block; the others follow in the slow tests.
QUICK = ("alexnet", "resnet18", "regnet_y_400mf")
# What a step compiles to takes XLA from ten seconds to a minute.
QUICK_STEP = ("resnet18",)


def assert_fingerprint(array, expected, tolerance=1e-9):
    """Compares all entries at once, each projection relative to the root mean square."""
    np.testing.assert_allclose(
        formula.fingerprint(np.asarray(array)), expected, rtol=0, atol=tolerance * expected[0]
    )


def checksum(shapes):
    """How many entries torch's state dict has, and a checksum of their names and shapes."""
    counters = {key.replace("running_var", "num_batches_tracked"): () for key in shapes if "running_var" in key}
    lines = sorted(f"{key}:{'x'.join(map(str, shape))}" for key, shape in (shapes | counters).items())
    return len(lines), zlib.crc32("\n".join(lines).encode())


def check_forward(name, sizes):
    shapes = torch_shapes(name)
    assert checksum(shapes) == (FORWARD[name]["entries"], FORWARD[name]["entries_crc32"])
    model = create_model(name, **DOUBLE)
    # On the device once for all sizes: the largest have 5 GB.
    variables = jax.tree.map(jnp.asarray, from_torch(name, formula.state_dict(shapes)))

    @jax.jit
    def run(variables, images):
        maps = model.apply(variables, images, train=False, method="features")
        return model.apply(variables, images, train=False), maps

    for size in sizes:
        recorded = FORWARD[name]["sizes"][size]
        logits, maps = run(variables, formula.images(*map(int, size.split("x"))))
        assert logits.dtype == jnp.float64
        assert list(logits.shape) == recorded["logits"]["shape"]
        assert_fingerprint(logits, recorded["logits"]["fingerprint"])
        scale = recorded["logits"]["fingerprint"][0]
        np.testing.assert_allclose(logits[0, :8], recorded["logits"]["first"], rtol=0, atol=1e-9 * scale)
        assert set(maps) == set(recorded["stages"])  # their order is tested beside the networks
        for stage, expected in recorded["stages"].items():
            assert list(maps[stage].shape) == expected["shape"], stage
            assert_fingerprint(maps[stage], expected["fingerprint"])


@pytest.mark.parametrize("name", QUICK)
def test_logits_and_feature_maps_equal_torchvisions_at_an_odd_size(name, x64):
    check_forward(name, ["2x97x75"])


@pytest.mark.parametrize("name", sampled(sorted(PUBLISHED), every=5))
def test_logits_and_feature_maps_equal_torchvisions_at_both_sizes(name, x64):
    check_forward(name, ["1x224x224", "2x97x75"])


def variables_like_torch(name, **fields):
    return from_torch(name, formula.state_dict(torch_shapes(name, **fields)), **fields)


@pytest.mark.slow
def test_auxiliary_logits_of_googlenet_in_training_equal_torchvisions(x64):
    recorded = FORWARD["googlenet_train"]["sizes"]["4x64x64"]
    model = create_model("googlenet", aux_logits=True, dropout_rate=0, aux_dropout_rate=0, **DOUBLE)
    variables = variables_like_torch("googlenet", aux_logits=True)
    run = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats", "aux_logits"]))
    logits, updated = run(variables, formula.images(4, 64, 64))
    assert_fingerprint(logits, recorded["logits"]["fingerprint"])
    auxiliary = updated["aux_logits"]
    assert list(auxiliary) == ["aux1_logits", "aux2_logits"]
    for name in auxiliary:
        assert_fingerprint(auxiliary[name][0], recorded[name.removesuffix("_logits")]["fingerprint"])


@pytest.mark.parametrize("name", [*QUICK_STEP, *sampled(sorted({*STEP} - {*QUICK_STEP}), every=3)])
def test_one_step_of_sgd_changes_everything_as_torch_does(name, x64):
    fields = {"num_classes": 10} | ({"aux_logits": True} if name == "googlenet" else {})
    rates = {"dropout_rate": 0} if name in ("alexnet", "vgg11_bn", "googlenet") else {}
    rates |= {"aux_dropout_rate": 0} if name == "googlenet" else {}
    model = create_model(name, **fields, **rates, **DOUBLE)
    variables = variables_like_torch(name, **fields)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    images, labels = formula.images(4, 64, 64), jnp.array([3, 1, 4, 1])

    def loss(params):
        logits, updated = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats", "aux_logits"]
        )

        def cross_entropy(logits):
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        auxiliary = jax.tree.leaves(updated.get("aux_logits", {}))
        return cross_entropy(logits) + 0.3 * sum(map(cross_entropy, auxiliary)), updated.get("batch_stats", {})

    @jax.jit
    def step(params):
        (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return value, {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}

    value, after = step(variables["params"])
    assert float(value) == pytest.approx(STEP[name]["loss"], rel=1e-9)
    after["batch_stats"] = with_torchs_variances(model, variables.get("batch_stats", {}), after["batch_stats"])
    before, after = (to_torch(name, tree, num_classes=10) for tree in (variables, after))
    changes = {key: after[key] - before[key] for key in before if not key.endswith("num_batches_tracked")}
    assert set(changes) == set(STEP[name]["changes"])
    for key, (stddev, projection) in STEP[name]["changes"].items():
        # Weights and means equal torch's far below the 1e-6 asked for; the changes of biases before a norm,
        # which only weight decay moves, are the smallest.
        assert np.sqrt(np.mean(changes[key] ** 2)) == pytest.approx(stddev, rel=1e-6), key
        assert formula.projection(changes[key], key) == pytest.approx(projection, abs=1e-6 * stddev), key


def with_torchs_variances(model, before, after):
    """torch averages a batch's unbiased variance, linen the biased: n / (n - 1) apart for n values a channel."""
    layers = measure(model, (64, 64, 3), batch=4).layers
    values = {layer.path: math.prod(layer.output_shape[:-1]) for layer in layers}
    values |= {f"aux{head}/conv/norm": 4 * 4 * 4 for head in (1, 2)}  # their maps are 4x4, and run in training only
    flat_before, flat_after = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (before, after))
    for path, new in flat_after.items():
        layer, leaf = path.rsplit("/", 1)
        if leaf == "var":
            kept, n = 0.9 * flat_before[path], values[layer]
            flat_after[path] = kept + (new - kept) * n / (n - 1)
    return flax.traverse_util.unflatten_dict(flat_after, sep="/")
