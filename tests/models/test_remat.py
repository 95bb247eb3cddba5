"""Blocks that are recomputed in the backward pass: the same values, with less memory."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError, create_model, list_models, model_info
from flaxcnn.models import googlenet
from flaxcnn.models.alexnet import AlexNet
from flaxcnn.models.cost import measure
from flaxcnn.models.lenet import LeNet5, LeNet5Paper
from tests.variables import random_images, random_variables

# Compiling takes most of the time, and less of it without optimization.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
BATCH = 11  # no other axis of what a network below keeps starts with this size
REMAT = jax.make_jaxpr(jax.checkpoint(jnp.sin))(1.0).eqns[0].primitive

RESNET = {"block": "preactivation_bottleneck", "depths": (2,), "widths": (4,), "dropout_rate": 0.3}
DENSENET = {"depths": (2,), "growth_rate": 4, "stem_features": 4, "dropout_rate": 0.2}
# A small net of each family, and for each of its blocks the number of feature maps that it takes.
NETS = {
    "resnet": ("wrn_40_4", RESNET, [1, 1]),
    "regnet": ("anynet", {"stages": ((2, 8, 4),), "stem_features": 8}, [1, 1]),
    "densenet": ("densenet40_12", DENSENET, [1, 2]),
    "googlenet": ("googlenet_paper", {"aux_logits": True}, [1, 1]),
    "vgg": ("vgg11_bn", {"blocks": ((1, 4), (1, 8)), "hidden": 8, "pooled_size": 1}, [1, 1]),
    "nin": ("nin_cifar", {"blocks": ((3, 1, 1, 4, 4, 4),)}, [1, 1]),
}
# The others take longer to compile.
FAMILIES = [
    pytest.param(name, marks=() if name in ("resnet", "densenet", "vgg") else pytest.mark.slow) for name in NETS
]


@pytest.fixture
def few_inceptions(monkeypatch):
    """Only those two Inception modules that the auxiliary classifiers take."""
    small = dict.fromkeys(("inception4a", "inception4d"), (2, (2, 4), (2, 4), 2))
    monkeypatch.setattr(googlenet, "INCEPTIONS", small)


def small_net(family, **fields):
    name, own, _ = NETS[family]
    return create_model(name, num_classes=7, **{**own, **fields})


def images_for(model):
    size = max(16, model.minimum_size)
    return random_images(BATCH, size, size, 3).astype(model.dtype)


def loss_of(model, variables, images):
    """Returns the loss as a function of the parameters, and beside it what the call updated."""

    def loss(params):
        logits, updated = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats", "aux_logits"],
            rngs={"dropout": jax.random.key(0, impl="unsafe_rbg")},
        )
        outputs = [logits, *jax.tree.leaves(updated.get("aux_logits", {}))]
        # Weighted, because the sum over a norm's output does not depend on what came in.
        return sum((jnp.cos(jnp.arange(out.size)).reshape(out.shape) * out).sum() for out in outputs), updated

    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_the_same_and_every_block_is_recomputed(family, few_inceptions, x64):
    plain, again = (
        small_net(family, remat=remat, dtype="float64", param_dtype="float64") for remat in (False, True)
    )
    images = images_for(plain)
    variables = random_variables(plain, images.shape)
    steps = [jax.value_and_grad(loss_of(model, variables, images), has_aux=True) for model in (plain, again)]
    traced = jax.jit(lambda params: [step(params) for step in steps]).trace(variables["params"])

    # All that the forward pass keeps for a block enters the equation that recomputes it: the block's input feature
    # maps and none from inside it. The gradient with respect to its output enters, too.
    blocks = [equation for equation in traced.jaxpr.eqns if equation.primitive is REMAT]
    maps = [sum(argument.aval.shape[:1] == (BATCH,) for argument in block.invars) - 1 for block in blocks]
    assert maps[::-1] == NETS[family][2]

    results = traced.lower().compile(compiler_options=QUICK)(variables["params"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), *results)


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_values_and_cost_are_the_same(family, few_inceptions):
    models = [small_net(family, remat=remat) for remat in (False, True)]
    images = images_for(models[0])
    key = jax.random.key(1, impl="unsafe_rbg")
    initialize = jax.jit(lambda: [model.init(key, images, train=False) for model in models], compiler_options=QUICK)
    jax.tree.map(np.testing.assert_array_equal, *initialize())
    assert measure(models[0], images.shape[1:]) == measure(models[1], images.shape[1:])


def test_maps_are_the_same():
    models = [small_net("vgg", remat=remat) for remat in (False, True)]
    images = images_for(models[0])
    variables = random_variables(models[0], images.shape)
    run = [functools.partial(model.apply, variables, train=False, method="features") for model in models]
    plain, again = jax.jit(lambda x: [features(x) for features in run], compiler_options=QUICK)(images)
    assert list(plain) == list(again) == ["stage1", "stage2"]
    jax.tree.map(np.testing.assert_array_equal, plain, again)


def test_what_a_dense_block_keeps_grows_with_its_layers_and_not_with_their_square():
    def bytes_kept(depth, remat):
        model = small_net("densenet", depths=(depth,), dropout_rate=0.0, remat=remat)
        images = images_for(model)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

        def backward(variables, images):
            return jax.vjp(loss_of(model, variables, images), variables["params"], has_aux=True)[1]

        kept = jax.tree.leaves(jax.eval_shape(backward, variables, images))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept if leaf.shape[:1] == (BATCH,))

    two, four, six = (bytes_kept(depth, remat=True) for depth in (2, 4, 6))
    assert six - four == four - two
    assert 2 * six < bytes_kept(6, remat=False)


def test_devices_and_interceptors_make_no_difference(x64):
    fields = {"dtype": "float64", "param_dtype": "float64", "bn_axis_name": "devices"}
    models = [small_net("resnet", depths=(1,), remat=remat, **fields) for remat in (False, True)]
    images = images_for(models[0])
    variables = random_variables(models[0], images.shape)
    norms = []

    def loss(model, params, scale, images):
        def intercept(call, args, kwargs, context):
            if context.method_name == "__call__" and isinstance(context.module, nn.Dropout):
                return scale * args[0]
            if context.method_name == "__call__" and isinstance(context.module, nn.BatchNorm):
                norms.append(context.module.path)
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            return loss_of(model, variables, images)(params)

    def gradients(params, scale, images):
        # By the parameters, and by what the interceptor brings into the blocks from outside.
        steps = [jax.grad(functools.partial(loss, model), argnums=(0, 1), has_aux=True) for model in models]
        return [step(params, scale, images) for step in steps]

    mesh, everywhere = jax.make_mesh((1,), ("devices",), (jax.sharding.AxisType.Auto,)), jax.P()
    sharded = jax.shard_map(
        gradients, mesh=mesh, in_specs=(everywhere, everywhere, jax.P("devices")), out_specs=everywhere
    )
    results = jax.jit(sharded, compiler_options=QUICK)(variables["params"], 1.5, images)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), *results)
    half = len(norms) // 2
    assert norms[:half] == norms[half:] and len(set(norms)) == half == 4


def test_networks_without_blocks_have_no_such_field():
    without = {
        module for module in {model_info(name).module for name in list_models()} if not hasattr(module, "remat")
    }
    assert without == {AlexNet, LeNet5, LeNet5Paper}
    with pytest.raises(UserError, match="alexnet has no field 'remat'"):
        create_model("alexnet", remat=True)
