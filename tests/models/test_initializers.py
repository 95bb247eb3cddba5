"""Initial weights: each layer's distribution is the documented one, by the published formula and its own shape."""

import fnmatch
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import create_model

KURTOSIS = {"normal": 3.0, "uniform": 1.8}
# Programs that run once are better compiled soon than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def normal(stddev):
    return "normal", stddev


def uniform(bound):
    return "uniform", bound / math.sqrt(3)


def constant(value):
    return "constant", value


def fan_in(shape):
    return math.prod(shape[:-1])  # a grouped kernel's last axis but one holds the channels of one group


def fan_out(shape):
    return math.prod(shape[:-2]) * shape[-1]


# The distributions of a kernel and its bias, given the kernel's shape; None for no bias.
def torch_default(shape):
    bound = 1 / math.sqrt(fan_in(shape))
    return uniform(bound), uniform(bound)


def torch_default_and_zeros(shape):
    return torch_default(shape)[0], constant(0)


def gaussian(stddev, bias=0.0):
    return lambda shape: (normal(stddev), constant(bias))


def gaussian_and_torch_bias(shape):
    return normal(0.01), torch_default(shape)[1]


def he_by_fan_out(shape):
    return normal(math.sqrt(2 / fan_out(shape))), constant(0)


def he_by_fan_in(shape):
    return normal(math.sqrt(2 / fan_in(shape))), constant(0)


def glorot(shape):
    return uniform(math.sqrt(6 / (fan_in(shape) + fan_out(shape)))), constant(0)


def caffe(shape):
    return uniform(math.sqrt(3 / fan_in(shape))), constant(0.2)


def caffe_head(shape):
    return caffe(shape)[0], constant(0)


def without_bias(distributions):
    return lambda shape: (distributions(shape)[0], None)


def assert_drawn(values, distribution, label):
    """Asserts that values come from a distribution, to four standard errors of its moments."""
    kind, number = distribution
    values = np.asarray(values, np.float64).ravel()
    if kind == "constant":
        np.testing.assert_array_equal(values, np.float32(number), err_msg=label)
        return
    root, kurtosis = math.sqrt(values.size), KURTOSIS[kind]
    standard = values / number
    assert abs(standard.mean()) < 4 / root, label
    assert abs(standard.std() - 1) < 4 * math.sqrt((kurtosis - 1) / 4) / root, label
    # Normal's standard error, which is the larger one; from 1000 values on it tells all distributions here apart.
    assert abs((standard**4).mean() / (standard**2).mean() ** 2 - kurtosis) < 4 * math.sqrt(24) / root, label
    if kind == "uniform":
        assert abs(standard).max() <= math.sqrt(3) * (1 + 1e-6), label
    elif values.size >= 5000:
        assert abs(standard).max() > 2.8, f"{label}: cut off"


def initial_layers(model, size, patterns):
    """The initial parameters of the layers whose path matches a pattern, by path, then by name."""

    def init(key):
        params = model.init(key, jnp.zeros((1, size, size, 3)), train=False)["params"]
        layers = {}
        for path, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
            path, _, name = path.rpartition("/")
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
                layers.setdefault(path, {})[name] = leaf
        return layers  # XLA drops what these do not depend on

    key = jax.random.key(0, impl="unsafe_rbg")  # compiles sooner than the default
    return jax.jit(init).lower(key).compile(QUICK)(key)


def assert_initial(model, size, expectations):
    """Asserts the initial values of the layers that match a pattern of `expectations`; the first match counts."""
    unused = set(expectations)
    for path, layer in initial_layers(model, size, expectations).items():
        pattern = next(pattern for pattern in expectations if fnmatch.fnmatchcase(path, pattern))
        unused.discard(pattern)
        if "scale" in layer:
            expected = {"scale": constant(expectations[pattern]), "bias": constant(0)}
        else:
            kernel, bias = expectations[pattern](layer["kernel"].shape)
            expected = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
        assert layer.keys() == expected.keys(), path
        for name, distribution in expected.items():
            assert_drawn(layer[name], distribution, f"{path}/{name}")
    assert not unused


ALEXNET = {"widths": (16, 32, 48, 64, 64), "groups": (1, 2, 1, 2, 2), "hidden": 64}
RESNET = {"depths": (2, 1), "widths": (32, 64), "stem_features": 32}
TORCH_HEAD = {"head": torch_default}
HE_AND_NORMS = {"*norm*": 1, "*": without_bias(he_by_fan_out)}
CASES = {
    "alexnet": (ALEXNET, 63, {"*": torch_default}),
    "alexnet_2012": (
        ALEXNET,
        63,
        {
            "conv[245]/conv": gaussian(0.01, bias=1),
            "conv[13]/conv": gaussian(0.01),
            "fc[67]": gaussian(0.01, bias=1),
            "head": gaussian(0.01),
        },
    ),
    "vgg11": (
        {"blocks": [[1, 16], [1, 32]], "hidden": 64},
        4,
        {"stage*/conv": he_by_fan_out, "*": gaussian(0.01)},
    ),
    "vgg11_bn": (
        {"blocks": [[1, 16], [1, 32]], "hidden": 64},
        4,
        {"stage*/norm": 1, "stage*/conv": he_by_fan_out, "*": gaussian(0.01)},
    ),
    "nin": ({"blocks": [[5, 1, 2, 32, 32, 32], [3, 1, 1, 64, 32, 32]]}, 8, {"*": glorot}),
    "nin_cifar": ({"blocks": [[5, 1, 2, 32, 32, 32]], "head_features": 64}, 8, {"*": gaussian(0.05)}),
    "googlenet": (
        {"aux_logits": True},
        15,
        {
            "conv[12]/norm": 1,
            "conv[12]/conv": without_bias(gaussian(0.01)),
            "inception3a/branch3/conv": without_bias(gaussian(0.01)),
            "aux1/conv/conv": without_bias(gaussian(0.01)),
            "aux1/fc": gaussian_and_torch_bias,
            "aux1/head": gaussian_and_torch_bias,
            "head": gaussian_and_torch_bias,
        },
    ),
    "googlenet_paper": (
        {"aux_logits": True},
        31,
        {
            "*head": caffe_head,
            "conv[12]/conv": caffe,
            "inception3a/branch3/conv": caffe,
            "aux1/conv/conv": caffe,
            "aux1/fc": caffe,
        },
    ),
    "resnet18": (RESNET, 32, {**TORCH_HEAD, **HE_AND_NORMS}),
    "resnext50_32x4d": ({**RESNET, "groups": 4, "width_per_group": 32}, 32, {**TORCH_HEAD, **HE_AND_NORMS}),
    "wrn_40_4": (RESNET, 32, {**TORCH_HEAD, **HE_AND_NORMS}),
    "resnet30": (RESNET, 32, {**TORCH_HEAD, "*norm*": 1, "*": he_by_fan_out}),
    "densenet121": (
        {"depths": (2, 2)},
        32,
        {"head": torch_default_and_zeros, "*norm": 1, "*": without_bias(he_by_fan_in)},
    ),
    "anynet": (
        {"stages": [[1, 32, 8], [2, 64, 16]], "squeeze_ratio": 0.25},
        32,
        {"head": gaussian(0.01), "*norm": 1, "*": he_by_fan_out},
    ),
    "regnet_y_400mf": (
        {"stages": [[1, 32, 8], [2, 64, 16]]},
        32,
        {"head": gaussian(0.01), "*norm": 1, "*/se/*": he_by_fan_out, "*": without_bias(he_by_fan_out)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_start_from_the_documented_distribution(name):
    fields, size, expectations = CASES[name]
    assert_initial(create_model(name, num_classes=50, **fields), size, expectations)


@pytest.mark.parametrize(("name", "last"), [("resnet18", "conv2"), ("resnet50", "conv3")])
def test_zero_init_residual_zeroes_the_last_scale_of_each_block(name, last):
    model = create_model(name, **RESNET, zero_init_residual=True)
    assert_initial(model, 32, {f"stage*_block*/{last}/norm": 0, "*/norm": 1})


def test_groups_shrink_the_fan_in_and_not_the_fan_out():
    kernel = (3, 3, 16, 64)  # of 64 input channels in 4 groups
    assert (fan_in(kernel), fan_out(kernel)) == (144, 576)
    layers = initial_layers(
        create_model("resnext50_32x4d", **RESNET, groups=4, width_per_group=32), 32, ["*conv2*"]
    )
    assert layers["stage1_block1/conv2/conv"]["kernel"].shape == kernel
