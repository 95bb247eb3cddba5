"""How weights start: the schemes of the papers and of torchvision, each a kernel and a bias."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = nn.initializers.Initializer


def symmetric_uniform(bound: float) -> Initializer:
    """Returns the uniform distribution in +-bound."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The start of a convolution's or fully connected layer's parameters.

    Attributes:
      kernel: initialiser of the kernel, whose last axis is the output.
      bias: given the layer's fan-in, the initialiser of the bias.
    """

    kernel: Initializer
    bias: Callable[[int], Initializer] = lambda fan_in: nn.initializers.zeros


def _variance(
    scale: float, mode: Literal["fan_in", "fan_out", "fan_avg"], distribution: Literal["normal", "uniform"]
) -> Initializer:
    return nn.initializers.variance_scaling(scale, mode, distribution)


# He et al. 2015 with ReLU's gain; fan_out is kernel height * width * output channels, whatever the groups.
HE_FAN_OUT = Scheme(_variance(2.0, "fan_out", "normal"))
HE_FAN_IN = Scheme(_variance(2.0, "fan_in", "normal"))
# Glorot and Bengio 2010.
GLOROT = Scheme(_variance(1.0, "fan_avg", "uniform"))


def _uniform_by_fan_in(fan_in: int) -> Initializer:
    return symmetric_uniform(1 / math.sqrt(fan_in))


# What torch's Conv2d and Linear start from: kernel and bias uniform in +-1/sqrt(fan_in).
TORCH = Scheme(_variance(1 / 3, "fan_in", "uniform"), _uniform_by_fan_in)
TORCH_ZERO_BIAS = Scheme(TORCH.kernel)


def gaussian(deviation: float, bias: float = 0.0) -> Scheme:
    """Returns a normal kernel of mean 0 and a constant bias."""
    return Scheme(nn.initializers.normal(deviation), lambda fan_in: nn.initializers.constant(bias))


# torchvision's GoogLeNet cuts the kernels at +-2, two hundred deviations: no cut at all.
NORMAL_001_TORCH_BIAS = Scheme(nn.initializers.normal(0.01), TORCH.bias)
# Caffe's "xavier" filler, which looks at the fan-in alone, and the biases of its GoogLeNet.
CAFFE_HEAD = Scheme(_variance(1.0, "fan_in", "uniform"))
CAFFE = Scheme(CAFFE_HEAD.kernel, lambda fan_in: nn.initializers.constant(0.2))
