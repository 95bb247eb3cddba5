"""What every network promises: any channels, classes and sizes, finite values, a gradient for every parameter."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError, create_model, list_models, model_info
from tests.marks import sampled
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
        # Weighted, because the sum over a norm's output does not depend on what came in.
        weighted = sum((jnp.cos(jnp.arange(out.size)).reshape(out.shape) * out).sum() for out in outputs)
        return weighted, (logits, updated)

    # Compiling takes most of the time, and less of it without optimization.
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
    [
        # A few by default: a convolution with groups, a norm of another kind, residual and gated blocks.
        pytest.param(*net, *case, marks=() if number in (2, 5, 7, 15) else pytest.mark.slow)
        for number, (net, case) in enumerate(zip(QUICK, itertools.cycle(CASES), strict=False))
    ],
)
def test_values_and_gradients_at_the_minimum_size(name, fields, channels, num_classes, dtype):
    check_forward_and_backward(name, channels, num_classes, dtype, **fields)


# What is left out differs from what is left in nothing but the number and width of equal blocks.
DEEPER = {"vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn", "resnet34", "resnet101", "resnet152"}
DEEPER |= {"resnet32", "resnet44", "resnet56", "resnet110", "wide_resnet101_2", "resnext101_64x4d"}
DEEPER |= {"resnext101_32x8d", "densenet161", "densenet169", "densenet201", "densenet_bc_190_40"}
DEEPER |= set(list_models("regnet_*")) - {"regnet_x_400mf", "regnet_x_8gf", "regnet_y_400mf", "regnet_y_8gf"}


@pytest.mark.parametrize(
    ("name", "channels", "num_classes", "dtype"),
    sampled(
        [
            (name, *case)
            for name, case in zip(sorted(set(list_models()) - DEEPER), itertools.cycle(CASES), strict=False)
        ],
        every=5,
    ),
)
def test_values_and_gradients_of_every_kind_of_network(name, channels, num_classes, dtype):
    check_forward_and_backward(name, channels, num_classes, dtype)


@pytest.mark.slow
def test_auxiliary_heads_have_gradients_at_the_minimum_size():
    check_forward_and_backward("googlenet", 3, 5, "float32", aux_logits=True)


@pytest.mark.slow
def test_at_the_minimum_size_every_stage_has_pixels():
    # One network for each family and minimum size.
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
        ("anynet", {"stages": "deep"}, "stages of anynet takes lists of numbers"),
        ("resnet18", {"stem": "imagnet"}, "has no stem 'imagnet'; write one of imagenet, cifar"),
        ("wrn_40_4", {"dropout_rate": -0.5}, "must be 0 or more"),
        ("wrn_40_4", {"dropout_rate": 1.5}, "is a probability from 0 to 1"),
        (
            "resnet50",
            {"dropout_rate": 0.5},
            "dropout_rate of ResNet does nothing with blocks of the kind bottleneck",
        ),
        ("resnet18", {"groups": 2}, "groups of ResNet does nothing with blocks of the kind basic"),
        ("resnet18", {"depths": [2, 2, 2, 2.5]}, "depths of resnet18 takes lists of whole numbers"),
        ("resnet18", {"depths": [2, 2, 2, 0]}, "depths of ResNet must be above 0"),
        ("resnet20", {"widths": [64, 32, 16]}, "channels that do not fall"),
        ("alexnet", {"groups": [2, 1, 1, 1, 1]}, "conv1 of AlexNet has one group"),
        ("densenet121", {"growth_rate": 0}, "growth_rate of DenseNet must be above 0"),
        ("vgg11", {"blocks": [[1, 0]]}, "blocks of VGG must be above 0"),
        ("anynet", {"stages": [[1.5, 32, 16]]}, "are whole numbers"),
        ("anynet", {"stages": [[1, 32, 0]]}, "must be above 0"),
        ("nin", {"blocks": [[3, 0, 1, 8, 8, 8]]}, "a number that is too small"),
        ("lenet5", {"activation": None}, "has no activation None"),
        ("lenet5", {"dtype": None}, "is not a floating dtype"),
        ("lenet5", {"dtype": "float64"}, "only with JAX_ENABLE_X64=1"),
    ],
)
def test_fields_that_cannot_work_are_refused(name, fields, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **fields)


def test_numbers_of_numpy_are_numbers():
    model = create_model("resnet18", num_classes=np.int64(7), depths=[np.int32(1)] * 4)
    assert model == create_model("resnet18", num_classes=7, depths=(1, 1, 1, 1))


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm", "group_norm"])
@pytest.mark.parametrize(("name", "size"), [("lenet5", 12), ("resnet20", 4)])
def test_with_every_norm_the_logits_depend_on_the_image(name, size, norm):
    model = create_model(name, norm=norm)
    images = random_images(4, size, size, 3)
    variables = random_variables(model, images.shape)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert np.all(np.std(logits, axis=0) > 1e-6)


def test_a_norm_keeps_the_constants_it_brings_along():
    norm = functools.partial(nn.BatchNorm, momentum=0.5, dtype=jnp.float32, axis_name="devices")
    bound = create_model("resnet20", norm=norm, dtype="bfloat16").bound_norm(train=True)()
    assert (bound.momentum, bound.dtype, bound.axis_name) == (0.5, jnp.float32, "devices")
    assert bound.use_running_average is False


def test_statistics_are_synchronized_over_a_named_axis():
    model = create_model("resnet20", depths=[1, 1, 1], bn_axis_name="devices")
    whole = create_model("resnet20", depths=[1, 1, 1])
    images = random_images(4, 8, 8, 3)
    variables = random_variables(model, images.shape)

    def run(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    logits, updated = jax.jit(jax.vmap(functools.partial(run, model), axis_name="devices"))(
        images.reshape(2, 2, 8, 8, 3)
    )
    expected, statistics = jax.jit(functools.partial(run, whole))(images)
    np.testing.assert_allclose(logits.reshape(4, -1), expected, rtol=1e-3, atol=1e-3)
    for mine, theirs in zip(jax.tree.leaves(updated), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_allclose(mine, np.stack([theirs, theirs]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_running_statistics_keep_their_dtype(dtype, x64):
    model = create_model("resnet20", depths=[1, 1, 1], dtype=dtype, param_dtype=dtype)
    images = jnp.ones((4, 8, 8, 3), dtype)
    before = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    _, after = jax.eval_shape(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), before, images)
    expected = {"float64": {jnp.dtype("float64")}, "bfloat16": {jnp.dtype("float32")}}[dtype]
    for tree in (before, after):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree["batch_stats"])} == expected


def test_auxiliary_logits_appear_only_where_asked_for():
    model = create_model("googlenet", aux_logits=True, num_classes=3)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), images)
    assert set(variables) == {"params", "batch_stats"}

    def collections(train, mutable):
        rngs = {"dropout": jax.random.key(0)}
        return jax.eval_shape(
            lambda v, x: model.apply(v, x, train=train, mutable=mutable, rngs=rngs)[1], variables, images
        )

    assert set(collections(True, ["batch_stats"])) == {"batch_stats"}
    assert "aux_logits" not in collections(False, ["aux_logits"])
    sown = collections(True, ["batch_stats", "aux_logits"])["aux_logits"]
    assert [leaf.shape for leaf in jax.tree.leaves(sown)] == [(2, 3), (2, 3)]
