"""What every network promises: any channels, classes and sizes, finite values, a gradient for every parameter."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError, create_model, list_models, model_info
from tests.variables import random_images, random_variables

CASES = [(1, 7, "float32"), (4, 0, "bfloat16")]
# A net of each family and kind of block that compiles in seconds, each with one case.
QUICK = [
    ("lenet5", {"norm": "batch_norm"}),
    ("lenet5_1998", {}),
    ("alexnet_2012", {"hidden": 64}),
    ("alexnet_bn", {"hidden": 64}),
    ("vgg11_bn", {"blocks": [[1, 8], [2, 16]], "hidden": 64}),
    ("vgg11", {"blocks": [[1, 8], [2, 16]], "hidden": 64, "norm": "group_norm"}),
    ("nin_cifar", {}),
    ("googlenet_paper", {}),
    ("resnet20", {}),
    ("resnet30", {"depths": [1, 2], "widths": [8, 16]}),
    ("wrn_40_4", {"depths": [2, 2], "widths": [16, 32], "dropout_rate": 0.3}),
    ("resnet20", {"block": "preactivation_bottleneck", "use_bias": True}),
    ("resnext29_8x64d", {"depths": [1, 2], "widths": [64, 128]}),
    ("resnet50", {"depths": [1, 2], "widths": [64, 128], "norm": "layer_norm"}),
    ("densenet121", {"depths": [2, 3], "dropout_rate": 0.2}),
    ("densenet40_12", {"depths": [2, 3]}),
    ("anynet", {"squeeze_ratio": 0.25, "stages": [[1, 16, 8, 0.5], [2, 32, 8, 2.0]]}),
]


def check_forward_and_backward(name, channels, num_classes, dtype, **fields):
    model = create_model(name, num_classes=num_classes, dtype=dtype, **fields)
    size = model.minimum_size
    images = random_images(6, size, size, channels).astype(jnp.float32)
    variables = random_variables(model, images.shape)

    def run(params, images):
        logits, updated = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats", "aux_logits"],
            rngs={"dropout": jax.random.key(0)},
        )
        outputs = [logits, *jax.tree.leaves(updated.get("aux_logits", {}))]
        # Weighted, because the sum over a map that a norm put out does not depend on what came in.
        weighted = sum((jnp.cos(jnp.arange(out.size)).reshape(out.shape) * out).sum() for out in outputs)
        return weighted, (logits, updated)

    # Compiling takes most of the time, and less of it without optimisation.
    step = jax.jit(
        jax.grad(run, has_aux=True, argnums=(0, 1)), compiler_options={"xla_backend_optimization_level": 0}
    )
    (gradients, by_images), (logits, updated) = step(variables["params"], images)
    assert logits.dtype == jnp.float32
    assert logits.shape[0] == 6 and logits.ndim == 2
    assert logits.shape[1] == num_classes or not num_classes
    assert np.isfinite(logits).all() and np.isfinite(by_images).all() and np.any(by_images)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path)
    before = variables.get("batch_stats", {})
    after = updated.get("batch_stats", {})
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new)


@pytest.mark.parametrize(
    ("name", "fields", "channels", "num_classes", "dtype"),
    [(*net, *case) for net, case in zip(QUICK, itertools.cycle(CASES), strict=False)],
)
def test_values_and_gradients_at_the_least_size(name, fields, channels, num_classes, dtype):
    check_forward_and_backward(name, channels, num_classes, dtype, **fields)


# What is left out differs in nothing but the number of equal blocks, and takes minutes each.
DEEPER = {"regnet_y_128gf", "regnet_y_32gf", "densenet201", "densenet161", "densenet_bc_190_40", "resnet152"}


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "num_classes", "dtype"), CASES)
@pytest.mark.parametrize("name", sorted(set(list_models()) - DEEPER))
def test_values_and_gradients_of_every_network(name, channels, num_classes, dtype):
    check_forward_and_backward(name, channels, num_classes, dtype)


@pytest.mark.slow
def test_auxiliary_heads_have_gradients_at_the_least_size():
    check_forward_and_backward("googlenet", 3, 5, "float32", aux_logits=True)


def test_at_the_least_size_every_stage_has_pixels():
    # One network for each family and least size.
    infos = {(info.module, info.minimum_size): info for info in map(model_info, list_models())}
    assert len(infos) > 10
    for info in infos.values():
        images = jax.ShapeDtypeStruct((1, info.minimum_size, info.minimum_size + 3, 2), jnp.float32)
        run = functools.partial(create_model(info.name).init_with_output, train=False, method="features")
        maps, _ = jax.eval_shape(lambda x, run=run: run(jax.random.key(0), x), images)
        assert all(min(leaf.shape) > 0 for leaf in maps.values())


@pytest.mark.parametrize("shape", [(28, 28, 1), (1, 2, 28, 28, 1)])
def test_images_of_another_rank_are_refused(shape):
    with pytest.raises(UserError, match=r"takes images of shape \(batch, height, width, channels\)"):
        jax.eval_shape(lambda x: create_model("resnet18").init(jax.random.key(0), x, train=False), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("alexnet", {"widths": [64, 192]}, "widths of AlexNet takes five values"),
        ("alexnet", {"groups": [1, 5, 1, 1, 1]}, "5 groups do not divide the channels around conv2"),
        ("vgg11", {"blocks": [[1, 64, 3]]}, r"takes pairs of \(convolutions, channels\)"),
        ("nin", {"blocks": [[3, 64]]}, "three channels"),
        ("resnet18", {"depths": [2, 2]}, "a depth and a width a stage"),
        ("densenet121", {"depths": []}, "depths of DenseNet"),
        ("anynet", {"stages": [[4, 32]]}, "a stage of AnyNet is"),
        ("anynet", {"stages": [[4, 32, 12]]}, "groups of 12 channels do not fill the 32"),
        ("anynet", {"stages": "deep"}, "takes a list of numbers"),
        ("resnet18", {"stem": "imagnet"}, "has no stem 'imagnet'; write one of imagenet, cifar"),
        ("resnet18", {"dropout_rate": -0.5}, "must be 0 or more"),
    ],
)
def test_fields_that_cannot_work_are_refused(name, fields, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **fields)
