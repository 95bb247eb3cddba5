"""What makes each family: blocks against closed forms, the textbook's feature maps, the design space's rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError, create_model
from flaxcnn.models.anynet import REGNETS, AnyNet, Stage, regnet_stages
from flaxcnn.models.googlenet import Inception
from flaxcnn.models.layers import ConvNorm
from flaxcnn.models.residual import PreActivationBlock, connect
from tests.variables import random_images, random_variables


def stage_shapes(name, shape, **fields):
    model = create_model(name, **fields)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    maps, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False, method="features"), images
    )
    assert all(leaf.shape[1] == leaf.shape[2] for leaf in maps.values())
    return {stage: (leaf.shape[3], leaf.shape[1]) for stage, leaf in maps.items()}


# Channels and size of each feature map, as d2l.ai's chapter 8 prints them.
@pytest.mark.parametrize(
    ("name", "shape", "fields", "expected"),
    [
        (
            "alexnet_d2l",
            (224, 224, 1),
            {},
            {"conv1": (96, 54), "pool1": (96, 26), "pool2": (256, 12), "pool5": (256, 5)},
        ),
        (
            "vgg11",
            (224, 224, 1),
            {"num_classes": 10},
            {
                "stage1": (64, 112),
                "stage2": (128, 56),
                "stage3": (256, 28),
                "stage4": (512, 14),
                "stage5": (512, 7),
            },
        ),
        ("nin", (224, 224, 1), {}, {"pool1": (96, 26), "pool2": (256, 12), "pool3": (384, 5)}),
        ("anynet", (96, 96, 1), {}, {"stem": (32, 48), "stage1": (32, 24), "stage2": (80, 12)}),
        (
            "densenet121",
            (96, 96, 1),
            {"depths": (4, 4, 4, 4), "bottleneck": 0, "num_classes": 10},
            {
                "stem": (64, 24),
                "block1": (192, 24),
                "transition1": (96, 12),
                "block2": (224, 12),
                "transition2": (112, 6),
                "block3": (240, 6),
                "transition3": (120, 3),
                "block4": (248, 3),
                "norm": (248, 3),
            },
        ),
        (
            "resnet18",
            (96, 96, 1),
            {"num_classes": 10},
            {"stem": (64, 24), "stage1": (64, 24), "stage2": (128, 12), "stage3": (256, 6), "stage4": (512, 3)},
        ),
    ],
)
def test_feature_maps_are_those_of_the_textbook(name, shape, fields, expected):
    maps = stage_shapes(name, shape, **fields)
    assert maps == expected
    assert list(maps) == list(expected)  # in order of depth


def test_feature_maps_of_googlenet_are_table_1_of_the_paper():
    maps = stage_shapes("googlenet_paper", (224, 224, 3))
    assert list(maps)[:3] == ["pool1", "conv3", "pool2"]
    assert maps["pool1"] == (64, 56) and maps["conv3"] == (192, 56) and maps["pool2"] == (192, 28)
    assert maps["inception3a"] == (256, 28) and maps["inception3b"] == (480, 28) and maps["pool3"] == (480, 14)
    channels = [maps[f"inception4{letter}"] for letter in "abcde"]
    assert channels == [(512, 14), (512, 14), (512, 14), (528, 14), (832, 14)]
    assert maps["pool4"] == maps["inception5a"] == (832, 7) and maps["inception5b"] == (1024, 7)


def test_an_inception_module_stands_alone():
    module = Inception(32, (32, 32), (32, 32), 32)
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    out, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), images)
    assert out.shape == (1, 128, 128, 128)
    assert variables["params"]["branch3"]["conv"]["kernel"].shape == (5, 5, 32, 32)


@pytest.mark.slow
def test_anynet_configured_as_resnet50_is_resnet50(x64):
    double = {"dtype": "float64", "param_dtype": "float64"}
    stages = [[3, 256, 64, 0.25, 1], [4, 512, 128, 0.25], [6, 1024, 256, 0.25], [3, 2048, 512, 0.25]]
    fields = {"stages": stages, "stem": "imagenet", "stem_features": 64, "use_bias": False, "num_classes": 1000}
    anynet, resnet = create_model("anynet", **fields, **double), create_model("resnet50", **double)
    images = random_images(2, 45, 38, 3)
    variables = random_variables(resnet, images.shape, dtype=jnp.float64)
    own = jax.eval_shape(lambda x: anynet.init(jax.random.key(0), x, train=False), images)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, variables)
    logits = [jax.jit(lambda v, m=m: m.apply(v, images, train=False))(variables) for m in (anynet, resnet)]
    np.testing.assert_allclose(*logits, rtol=1e-12)


def test_anynet_configured_as_resnext50_has_its_groups():
    stages = [[3, 256, 4, 0.5, 1], [4, 512, 8, 0.5], [6, 1024, 16, 0.5], [3, 2048, 32, 0.5]]
    model = AnyNet(stages=stages, stem="imagenet", stem_features=64)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(lambda x, m=m: m.init(jax.random.key(0), x, train=False), images))
        for m in (model, create_model("resnext50_32x4d"))
    ]
    assert shapes[0] == shapes[1]


# Depths and widths as the papers' authors and torchvision list them.
STAGES = {
    "regnet_x_400mf": ((1, 2, 7, 12), (32, 64, 160, 400)),
    "regnet_x_800mf": ((1, 3, 7, 5), (64, 128, 288, 672)),
    "regnet_x_1_6gf": ((2, 4, 10, 2), (72, 168, 408, 912)),
    "regnet_x_3_2gf": ((2, 6, 15, 2), (96, 192, 432, 1008)),
    "regnet_x_8gf": ((2, 5, 15, 1), (80, 240, 720, 1920)),
    "regnet_x_16gf": ((2, 6, 13, 1), (256, 512, 896, 2048)),
    "regnet_x_32gf": ((2, 7, 13, 1), (336, 672, 1344, 2520)),
    "regnet_y_400mf": ((1, 3, 6, 6), (48, 104, 208, 440)),
    "regnet_y_800mf": ((1, 3, 8, 2), (64, 144, 320, 784)),
    "regnet_y_1_6gf": ((2, 6, 17, 2), (48, 120, 336, 888)),
    "regnet_y_3_2gf": ((2, 5, 13, 1), (72, 216, 576, 1512)),
    "regnet_y_8gf": ((2, 4, 10, 1), (224, 448, 896, 2016)),
    "regnet_y_16gf": ((2, 4, 11, 1), (224, 448, 1232, 3024)),
    "regnet_y_32gf": ((2, 5, 12, 1), (232, 696, 1392, 3712)),
    "regnet_y_128gf": ((2, 7, 17, 1), (528, 1056, 2904, 7392)),
}
PAPER_WIDTHS = {
    "regnet_x_400mf": (32, 64, 160, 384),
    "regnet_y_800mf": (64, 128, 320, 768),
    "regnet_y_8gf": (168, 448, 896, 2016),
}


@pytest.mark.parametrize("name", REGNETS)
def test_the_rule_generates_the_published_regnets_in_both_roundings(name):
    depths, widths = STAGES[name]
    stages = regnet_stages(*REGNETS[name])
    assert tuple(stage.depth for stage in stages) == depths
    assert tuple(stage.width for stage in stages) == widths
    assert [stage.group_width for stage in stages] == [min(REGNETS[name][-1], stage.width) for stage in stages]
    assert all(stage.width % stage.group_width == 0 for stage in stages)
    paper = regnet_stages(*REGNETS[name], rounding="paper")
    assert tuple(stage.width for stage in paper) == PAPER_WIDTHS.get(name, widths)
    assert tuple(stage.depth for stage in paper) == depths


def test_the_first_stage_of_x_8gf_has_groups_no_wider_than_itself():
    assert [stage.group_width for stage in regnet_stages(*REGNETS["regnet_x_8gf"])] == [80, 120, 120, 120]


def test_a_bottleneck_ratio_shapes_the_inner_width():
    for ratio, group_width in ((0.5, 8), (4.0, 10)):
        for rounding in ("torchvision", "paper"):
            stages = regnet_stages(16, 48, 27.89, 2.09, group_width, bottleneck_ratio=ratio, rounding=rounding)
            assert all(isinstance(stage, Stage) and stage.bottleneck_ratio == ratio for stage in stages)
            assert all(round(stage.width * ratio) % stage.group_width == 0 for stage in stages)
            create_model("anynet", stages=stages)


def test_what_the_rule_cannot_do_is_refused():
    with pytest.raises(UserError, match="rounding of RegNet is torchvision or paper, got 'pycls'"):
        regnet_stages(16, 48, 27.89, 2.09, 8, rounding="pycls")
    with pytest.raises(UserError, match="multiplier of RegNet must be above 1"):
        regnet_stages(16, 48, 27.89, 1, 8)


def test_zero_padded_shortcuts_subsample_and_append_zeros():
    x = random_images(2, 5, 6, 3)
    y = connect(x, 8, 2, "zero_pad", ConvNorm)
    assert y.shape == (2, 3, 3, 8)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    assert not np.any(y[..., 3:])
    assert connect(x, 3, 1, "zero_pad", ConvNorm) is x


def test_a_pre_activation_block_adds_to_its_untouched_input():
    def conv(features, kernel_size, **fields):
        return ConvNorm(features, kernel_size, use_bias=True, activation=None, **fields)

    def norm(name):
        return lambda x: 2 * x

    block = PreActivationBlock(4, conv, norm)
    x = random_images(1, 3, 3, 4)
    variables = random_variables_of(block, x)
    kernel = {name: np.asarray(variables["params"][name]["conv"]["kernel"]) for name in ("conv1", "conv2")}
    bias = {name: np.asarray(variables["params"][name]["conv"]["bias"]) for name in ("conv1", "conv2")}

    def conv3x3(x, name):
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        out = np.zeros(x.shape)
        for i in range(3):
            for j in range(3):
                out += padded[i : i + 3, j : j + 3] @ kernel[name][i, j]
        return out + bias[name]

    inner = conv3x3(np.maximum(2 * np.asarray(x[0]), 0), "conv1")
    expected = np.asarray(x[0]) + conv3x3(np.maximum(2 * inner, 0), "conv2")
    np.testing.assert_allclose(block.apply(variables, x)[0], expected, rtol=1e-4, atol=1e-4)


def random_variables_of(block, x):
    """Variables of a block, whose call takes no `train`."""
    abstract = jax.eval_shape(lambda x: block.init(jax.random.key(0), x), x)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), abstract)


def test_dropout_draws_from_its_key_in_training_only():
    model = create_model("wrn_40_4", depths=[1, 1], widths=[16, 16], dropout_rate=0.5)
    images = random_images(4, 8, 8, 3)
    variables = random_variables(model, images.shape)
    run = jax.jit(
        lambda key, train: model.apply(
            variables, images, train=train, rngs={"dropout": key}, mutable=["batch_stats"]
        )[0],
        static_argnums=1,
    )
    keys = jax.random.key(0), jax.random.key(1)
    assert np.array_equal(run(keys[0], False), run(keys[1], False))
    assert not np.allclose(run(keys[0], True), run(keys[1], True))
    assert np.array_equal(run(keys[0], True), run(keys[0], True))
