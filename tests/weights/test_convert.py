"""Weights to torch's names and back, value for value, and the refusal of what does not fit."""

import math

import flax
import jax
import ml_dtypes
import numpy as np
import pytest

from flaxcnn import UserError, create_model
from flaxcnn.models.published import PUBLISHED
from flaxcnn.weights import from_torch, to_torch
from flaxcnn.weights.convert import torch_shapes
from tests.marks import sampled

QUICK = ("googlenet", "regnet_y_400mf")


def numbered(shapes, dtype=np.float32):
    """A state dict in which no two values of an array are equal, with torch's counters."""
    arrays = {key: np.arange(math.prod(shape)).reshape(shape).astype(dtype) for key, shape in shapes.items()}
    for key in shapes:
        if key.endswith("running_var"):
            arrays[key.replace("running_var", "num_batches_tracked")] = np.asarray(0, np.int64)
    return arrays


def check_round_trip(name, dtype, **fields):
    state_dict = numbered(torch_shapes(name, **fields), dtype)
    variables = from_torch(name, state_dict)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(dtype)}
    back = to_torch(name, variables)
    assert set(back) == set(state_dict)
    for key, value in state_dict.items():
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape, key
        np.testing.assert_array_equal(back[key], value)


@pytest.mark.parametrize("name", QUICK)
def test_a_round_trip_keeps_every_bit(name):
    check_round_trip(name, np.int32)


@pytest.mark.parametrize("name", sampled(sorted(PUBLISHED), every=5))
def test_a_round_trip_keeps_every_bit_of_every_network(name):
    check_round_trip(name, np.int32)


def test_a_round_trip_keeps_auxiliary_heads_and_dtypes():
    check_round_trip("googlenet", ml_dtypes.bfloat16, aux_logits=True)
    check_round_trip("resnet18", np.float64)


def test_the_tree_is_that_of_the_network():
    for name, fields in (("googlenet", {"aux_logits": True}), ("regnet_x_400mf", {})):
        variables = from_torch(name, numbered(torch_shapes(name, **fields)))
        model = create_model(name, **fields)
        images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
        expected = jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x, train=False), images)
        assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)


def test_variables_share_no_memory_with_the_state_dict():
    state_dict = numbered(torch_shapes("resnet18"))
    variables = from_torch("resnet18", state_dict)
    back = to_torch("resnet18", variables)
    for arrays in (state_dict, back):
        for value in arrays.values():
            value[...] = -1
    assert min(leaf.min() for leaf in jax.tree.leaves(variables)) == 0


def test_other_classes_and_channels_convert_too():
    shapes = torch_shapes("resnet18", num_classes=7, channels=1)
    assert shapes["conv1.weight"] == (64, 1, 7, 7)
    state_dict = numbered(shapes)
    variables = from_torch("resnet18", state_dict, num_classes=7, channels=1)
    np.testing.assert_array_equal(to_torch("resnet18", variables)["conv1.weight"], state_dict["conv1.weight"])


def test_what_does_not_fit_is_refused_by_name():
    whole = numbered(torch_shapes("resnet18"))
    bad = dict(whole)
    del bad["layer1.0.bn1.running_mean"]
    with pytest.raises(UserError, match=r"do not fit resnet18: missing: layer1\.0\.bn1\.running_mean$"):
        from_torch("resnet18", bad)
    with pytest.raises(UserError, match=r"unexpected: layer9\.weight, fc\.num_batches_tracked$"):
        from_torch("resnet18", {**whole, "layer9.weight": np.zeros(3), "fc.num_batches_tracked": np.zeros(())})
    with pytest.raises(
        UserError, match=r"misshaped: fc\.bias \[10\] instead of \[1000\] \(pass num_classes and channels"
    ):
        from_torch("resnet18", {**whole, "fc.bias": np.zeros(10)})
    with pytest.raises(UserError, match=r"misshaped: conv1\.weight \[7, 7, 3, 64\] instead of \[64, 3, 7, 7\]"):
        from_torch("resnet18", {**whole, "conv1.weight": np.zeros((7, 7, 3, 64))})
    with pytest.raises(UserError, match=r"missing: layer1.* and 80 more; unexpected: weight$"):
        from_torch("resnet18", {"weight": np.zeros(1)} | {k: v for k, v in whole.items() if k.startswith("fc")})
    aux = numbered(torch_shapes("googlenet", aux_logits=True))
    del aux["aux2.fc1.bias"]
    with pytest.raises(UserError, match=r"missing: aux2\.fc1\.bias$"):
        from_torch("googlenet", aux)
    with pytest.raises(UserError, match="torchvision has no network lenet5; it has alexnet"):
        from_torch("lenet5", whole)


def test_variables_that_do_not_fit_are_refused_by_name():
    variables = from_torch("resnet18", numbered(torch_shapes("resnet18")))
    del variables["params"]["stem"]["norm"]["scale"]
    variables["params"]["head"]["kernel"] = np.zeros((512, 999))
    with pytest.raises(UserError) as error:
        to_torch("resnet18", variables)
    assert "missing: params/stem/norm/scale" in str(error.value)
    assert "misshaped: params/head/kernel [512, 999] instead of [512, 1000]" in str(error.value)


def test_the_keys_of_old_densenet_files_are_understood():
    state_dict = numbered(torch_shapes("densenet121"))
    old = {}
    for key, value in state_dict.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    new, converted = (flax.traverse_util.flatten_dict(from_torch("densenet121", d)) for d in (state_dict, old))
    assert new.keys() == converted.keys()
    assert all(np.array_equal(new[path], converted[path]) for path in new)
