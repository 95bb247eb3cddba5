"""With BatchNorm folded into its convolutions a network computes the same."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError, create_model, fold_batch_norm, list_models
from flaxcnn.models.batch_norm import BatchNorm
from tests.marks import sampled
from tests.variables import random_images, random_variables, tame_gates

# Compiling takes most of the time, and less of it without optimisation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
DOUBLE = {"dtype": "float64", "param_dtype": "float64"}
PLAIN = functools.partial(nn.BatchNorm, use_scale=False, use_bias=False, epsilon=0.1)
# A small network of each kind of block, and how many of its norms keep a scale and a bias, and a bias alone.
NETS = [
    ("lenet5", {"norm": "batch_norm"}, 0, 0),  # every convolution and dense layer has a bias
    ("resnet50", {"depths": (1,), "widths": (8,), "groups": 2, "norm": PLAIN}, 0, 5),
    ("resnet20", {"block": "preactivation_bottleneck", "depths": (1,), "widths": (4,)}, 2, 2),
    ("densenet121", {"depths": (2, 1), "growth_rate": 4, "dropout_rate": 0.2, "remat": True}, 5, 4),
]
MORE_NETS = [
    ("alexnet_bn", {"hidden": 8, "widths": (8,) * 5}, 5, 0),  # behind a ReLU
    ("vgg11_bn", {"blocks": ((1, 4), (2, 8)), "hidden": 8, "pooled_size": 1}, 0, 0),
    ("resnet30", {"depths": (1, 2), "widths": (8, 16)}, 4, 0),  # behind an addition, and on the image
    ("resnext29_8x64d", {"depths": (1, 2), "widths": (64, 128), "remat": True}, 0, 12),
    ("densenet40_12", {"depths": (2, 2)}, 6, 0),
    ("anynet", {"use_bias": False, "squeeze_ratio": 0.25, "stages": ((1, 16, 8, 0.5), (1, 32, 8, 2.0))}, 0, 9),
    ("anynet", {"use_bias": True, "stages": ((1, 16, 8),), "num_classes": 0}, 0, 0),
]


def outputs(model, variables, images):
    """The feature maps and the logits in one dictionary."""
    run = jax.jit(lambda v, x: model.apply(v, x, False, method="forward"), compiler_options=QUICK)
    maps, logits = run(variables, images)
    return {**maps, "logits": logits}


def check_folded(name, channels=3, size=0, **fields):
    model = create_model(name, **fields, **DOUBLE)
    size = max(model.minimum_size, size)
    images = random_images(2, size, size, channels)
    variables = tame_gates(random_variables(model, images.shape))
    folded, folded_variables = fold_batch_norm(model, variables)
    assert type(folded) is type(model) and set(folded_variables) == {"params"}
    fresh = jax.eval_shape(lambda x: folded.init(jax.random.key(0), x, train=False), images)
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(fresh) == shapes(folded_variables)
    expected, actual = outputs(model, variables, images), outputs(folded, folded_variables, images)
    assert list(expected) == list(actual)
    for stage, values in expected.items():
        scale = np.abs(values).max()
        assert scale > 0
        np.testing.assert_allclose(actual[stage], values, rtol=0, atol=1e-9 * scale, err_msg=stage)
    return flax.traverse_util.flatten_dict(folded_variables["params"])


@pytest.mark.parametrize(
    ("name", "fields", "scaled", "shifted"),
    NETS + [pytest.param(*net, marks=pytest.mark.slow) for net in MORE_NETS],
)
def test_feature_maps_and_logits_stay(name, fields, scaled, shifted, x64):
    params = check_folded(name, **fields)
    norms = [path[:-1] for path in params if "norm" in path[-2]]
    assert sum(path[-1] == "scale" for path in params) == scaled
    assert len(norms) - 2 * scaled == shifted


NORMED = [name for name in list_models() if getattr(create_model(name), "norm", None) is not None]
# 645 million parameters, equal but for number and width to the blocks of regnet_y_32gf.
NORMED.remove("regnet_y_128gf")


@pytest.mark.parametrize("name", sampled(NORMED, every=5))
def test_every_network_with_batch_norm(name, x64):
    small = {"hidden": 64} if hasattr(create_model(name), "hidden") else {}
    check_folded(name, size=32, **small)


@pytest.mark.slow
def test_auxiliary_heads_are_folded_too(x64):
    params = check_folded("googlenet", size=32, aux_logits=True)
    assert ("aux1", "conv", "norm", "bias") in params and ("aux1", "conv", "norm", "scale") not in params


@pytest.mark.parametrize("channels", [1, 4])
def test_single_precision_keeps_five_digits_for_any_channels(channels):
    model = create_model("resnet20", depths=(1, 1, 1))
    images = random_images(2, 16, 16, channels).astype(jnp.float32)
    variables = random_variables(model, images.shape)
    # A scale of zero, as at the start of training where each block is the identity.
    variables["params"]["stage1_block1"]["conv2"]["norm"]["scale"] *= 0
    folded, folded_variables = fold_batch_norm(model, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded_variables)} == {jnp.dtype("float32")}
    expected, actual = outputs(model, variables, images), outputs(folded, folded_variables, images)
    np.testing.assert_allclose(
        actual["logits"], expected["logits"], rtol=0, atol=1e-5 * np.abs(expected["logits"]).max()
    )


def test_half_precision_comes_as_near_to_single_as_with_batch_norm():
    model = create_model("wrn_40_4", depths=(2,), widths=(16,))
    images = random_images(4, 8, 8, 3).astype(jnp.float32)
    variables = random_variables(model, images.shape)
    half = model.clone(dtype=jnp.bfloat16)
    exact = outputs(model, variables, images)["logits"]
    folded = fold_batch_norm(half, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded[1])} == {jnp.dtype("float32")}
    before, after = (np.abs(outputs(*net, images)["logits"] - exact).mean() for net in ((half, variables), folded))
    assert after < 1.5 * before + 1e-6 and before > 0
    assert outputs(*folded, images)["stage1"].dtype == jnp.bfloat16


def test_parameters_keep_a_dtype_of_half_precision():
    model = create_model("resnet20", depths=(1, 1, 1), dtype="bfloat16", param_dtype="bfloat16")
    _, variables = fold_batch_norm(model, random_variables(model, (1, 8, 8, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}


def test_a_norm_of_another_dtype_than_the_network_keeps_it():
    for norm, dtype in ((BatchNorm, jnp.bfloat16), (functools.partial(BatchNorm, dtype=jnp.float32), jnp.float32)):
        model = create_model("vgg11_bn", blocks=((1, 4),), hidden=8, norm=norm, dtype="bfloat16")
        folded, variables = fold_batch_norm(model, random_variables(model, (1, 8, 8, 3)))
        run = functools.partial(folded.apply, variables, train=False, method="features")
        assert jax.eval_shape(run, jnp.zeros((1, 8, 8, 3)))["stage1"].dtype == dtype


@pytest.mark.parametrize(
    ("name", "fields"), [("lenet5", {}), ("nin_cifar", {}), ("resnet20", {"norm": "group_norm"})]
)
def test_without_batch_norm_nothing_changes(name, fields):
    model = create_model(name, **fields)
    variables = random_variables(model, (1, 32, 32, 3))
    folded, folded_variables = fold_batch_norm(model, variables)
    assert folded is model and folded_variables is variables


def test_folding_twice_is_folding_once():
    model = create_model("resnet20", depths=(1, 1, 1))
    once = fold_batch_norm(model, random_variables(model, (1, 8, 8, 3)))
    assert fold_batch_norm(*once) == once


def test_training_a_folded_network_normalizes_nothing():
    model = create_model("wrn_40_4", depths=(1,), widths=(8,), dropout_rate=0.5)
    images = random_images(2, 8, 8, 3).astype(jnp.float32)
    folded, variables = fold_batch_norm(model, random_variables(model, images.shape))
    run = jax.jit(functools.partial(folded.apply, variables, train=True, rngs={"dropout": jax.random.key(0)}))
    whole = run(images)
    assert not np.allclose(whole, outputs(folded, variables, images)["logits"])
    # Nothing depends on what else is in the batch, but for the draws of dropout, which go by place.
    np.testing.assert_allclose(run(images.at[1].set(0))[0], whole[0], rtol=1e-5)


def test_variables_of_another_network_are_refused():
    model = create_model("resnet20", depths=(1, 1, 1))
    variables = random_variables(model, (1, 8, 8, 3))
    with pytest.raises(UserError, match="they have no stem/norm/mean"):
        fold_batch_norm(model, {"params": variables["params"]})
    with pytest.raises(UserError, match="they have no stage1_block2/conv1/norm/mean"):
        fold_batch_norm(create_model("resnet20"), variables)
