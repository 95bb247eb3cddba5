"""Initializers of kernels and biases, as in the papers and in torchvision."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = nn.initializers.Initializer


@dataclasses.dataclass(frozen=True)
class LayerInitializer:
    """The initializers of a convolution or dense layer.

    Attributes:
      kernel: initializer of the kernel, whose last axis holds the output channels.
      bias: function that returns the initializer of the bias, given the fan-in of the layer.
    """

    kernel: Initializer
    bias: Callable[[int], Initializer] = lambda fan_in: nn.initializers.zeros


def symmetric_uniform(bound: float) -> Initializer:
    """Returns an initializer that samples uniformly from [-bound, bound)."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _variance(
    scale: float, mode: Literal["fan_in", "fan_out", "fan_avg"], distribution: Literal["normal", "uniform"]
) -> Initializer:
    return nn.initializers.variance_scaling(scale, mode, distribution)


# He et al. 2015, with the gain of ReLU. fan_out is kernel height * width * output channels, also with groups.
HE_FAN_OUT = LayerInitializer(_variance(2.0, "fan_out", "normal"))
HE_FAN_IN = LayerInitializer(_variance(2.0, "fan_in", "normal"))
# Glorot and Bengio 2010.
GLOROT = LayerInitializer(_variance(1.0, "fan_avg", "uniform"))


def _uniform_by_fan_in(fan_in: int) -> Initializer:
    return symmetric_uniform(1 / math.sqrt(fan_in))


# The default of torch's Conv2d and Linear: kernel and bias are uniform in +-1/sqrt(fan_in).
TORCH = LayerInitializer(_variance(1 / 3, "fan_in", "uniform"), _uniform_by_fan_in)
TORCH_ZERO_BIAS = LayerInitializer(TORCH.kernel)


def gaussian(stddev: float, bias: float = 0.0) -> LayerInitializer:
    """Returns initializers for a normally distributed kernel with mean 0 and a constant bias."""
    return LayerInitializer(nn.initializers.normal(stddev), lambda fan_in: nn.initializers.constant(bias))


# torchvision truncates the distribution of GoogLeNet's kernels at +-2, 200 standard deviations; that has no effect.
NORMAL_001_TORCH_BIAS = LayerInitializer(nn.initializers.normal(0.01), TORCH.bias)
# Caffe's "xavier" initializer, which depends on the fan-in only, and the biases of Caffe's GoogLeNet.
CAFFE_HEAD = LayerInitializer(_variance(1.0, "fan_in", "uniform"))
CAFFE = LayerInitializer(CAFFE_HEAD.kernel, lambda fan_in: nn.initializers.constant(0.2))
