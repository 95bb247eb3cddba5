"""Freezing layers, and a learning rate of its own for the head."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn import UserError, create_model
from flaxcnn.config import OptimizerConfig
from flaxcnn.training import finetune
from flaxcnn.training.optimizer import make_optimizer
from tests.variables import random_variables

SHAPE = (1, 32, 32, 3)


@pytest.fixture
def params():
    return random_variables(create_model("resnet20", num_classes=7), SHAPE)["params"]


def changed(optimizer, params):
    """Which parameters two steps on constant gradients change, by top layer."""
    state, after = optimizer.init(params), params
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, after)
        after = optax.apply_updates(after, updates)
    return jax.tree.map(lambda a, b: a - b, after, params)


def test_frozen_layers_stay_bit_for_bit_and_the_others_train_as_without(params):
    optimizer = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    frozen = changed(finetune.freeze(optimizer, "stem", "stage[12]_*", "*/bias"), params)
    free = changed(optimizer, params)
    for (path, mine), other in zip(jax.tree.leaves_with_path(frozen), jax.tree.leaves(free), strict=True):
        layer, leaf = path[0].key, path[-1].key
        if layer == "stem" or layer[:6] in ("stage1", "stage2") or leaf == "bias":
            assert not np.any(mine), path
        else:
            np.testing.assert_array_equal(mine, other)
            assert np.all(mine), path


def test_frozen_layers_keep_no_optimizer_state(params):
    state = finetune.freeze(optax.sgd(0.1, momentum=0.9), "stage*").init(params)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert kept == sum(leaf.size for layer in ("stem", "head") for leaf in jax.tree.leaves(params[layer]))


def test_the_head_has_its_own_learning_rate(params):
    optimizer = optax.sgd(0.1, momentum=0.9)
    scaled = changed(finetune.scale_learning_rate(optimizer, 10, "head"), params)
    for path, mine in jax.tree.leaves_with_path(scaled):
        # Two steps of 0.1 with momentum 0.9 on a gradient of 1: 0.1 + 0.1 * 1.9.
        np.testing.assert_allclose(mine, -2.9 if path[0].key == "head" else -0.29, rtol=1e-4)


def test_a_pattern_of_a_layer_means_all_within_it(params):
    mask = finetune.select(params, "stage3_block1/conv1")
    chosen = [[key.key for key in path] for path, leaf in jax.tree.leaves_with_path(mask) if leaf]
    assert chosen == [
        ["stage3_block1", "conv1", "conv", "kernel"],
        ["stage3_block1", "conv1", "norm", "bias"],
        ["stage3_block1", "conv1", "norm", "scale"],
    ]


def test_a_pattern_that_matches_nothing_is_an_error(params):
    with pytest.raises(UserError, match=r"no layer matches 'stage4_\*'; did you mean"):
        finetune.freeze(optax.sgd(0.1), "head", "stage4_*").init(params)


@pytest.mark.slow
def test_the_classifier_of_every_network_is_called_head():
    for name in (
        "lenet5",
        "alexnet",
        "vgg11",
        "nin",
        "nin_cifar",
        "googlenet",
        "resnet18",
        "densenet121",
        "anynet",
    ):
        model = create_model(name, num_classes=3)
        size = max(model.minimum_size, 32)
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        with_head, without = (
            jax.eval_shape(lambda x, m=m: m.init(jax.random.key(0), x, train=False), images)["params"]
            for m in (model, create_model(name, num_classes=0))
        )
        assert set(with_head) - set(without) == {"head"}, name


@pytest.mark.parametrize("freeze_first", [True, False])
def test_freezing_and_scaling_compose(params, freeze_first):
    optimizer = optax.sgd(0.1)
    if freeze_first:
        optimizer = finetune.scale_learning_rate(finetune.freeze(optimizer, "stem"), 10, "head")
    else:
        optimizer = finetune.freeze(finetune.scale_learning_rate(optimizer, 10, "head"), "stem")
    expected = {"stem": 0.0, "head": -2.0}
    for path, mine in jax.tree.leaves_with_path(changed(optimizer, params)):
        np.testing.assert_allclose(mine, expected.get(path[0].key, -0.2), rtol=1e-4)


@pytest.mark.parametrize("pattern", ["conv*", "*/bias", "norm", "head"])
def test_freezing_goes_with_the_weight_decay_of_recipes(pattern):
    params = {
        "conv1": {"kernel": jnp.ones((1, 1, 2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    }
    config = OptimizerConfig(learning_rate=1.0, momentum=0.0, weight_decay=0.5, norm_weight_decay=0.25)
    optimizer = finetune.freeze(make_optimizer(config, optax.constant_schedule(1.0)), pattern)
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    decays = {"kernel": 0.5, "scale": 0.25}
    frozen = finetune.select(params, pattern)
    for layer, leaves in params.items():
        for name in leaves:
            decay = decays.get(name, 0.25 if layer == "norm" else 0.0)
            np.testing.assert_allclose(updates[layer][name], 0.0 if frozen[layer][name] else -decay, atol=1e-7)
