"""Layers that several families of networks share: convolution with norm, dense layer, squeeze-excitation, stem."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from flaxcnn.models.batch_norm import BatchNorm
from flaxcnn.models.initializers import HE_FAN_OUT, Initializer, LayerInitializer
from flaxcnn.ops import average_pool, convolution, dense, global_average_pool, max_pool

Array = jax.Array
Dtype = Any
Activation = Callable[[Array], Array]
Pooling = Callable[[Array], Array]
# Constructor of a norm, the type of a network's field `norm`: `nn.LayerNorm`, for example, or a partial that fixes
# some arguments. It is called with `name`, `dtype`, `param_dtype` and `scale_init`, and returns a callable that
# maps an array to an array of the same shape.
Norm = Callable[..., Callable[[Array], Array]]
# Constructor of a layer, which a network passes to its blocks with dtypes, norm and train mode already bound.
Layer = Callable[..., nn.Module]


def group_norm(**fields: Any) -> Callable[[Array], Array]:
    """Returns a function that applies `nn.GroupNorm` (Wu and He 2018) with gcd(32, channels) groups."""
    return lambda x: nn.GroupNorm(num_groups=math.gcd(32, x.shape[-1]), **fields)(x)


# For each field that takes a function: the names by which configurations, which hold no functions, refer to them.
NAMED_FUNCTIONS: dict[str, dict[str, Callable]] = {
    "activation": {"relu": nn.relu, "sigmoid": nn.sigmoid, "tanh": jnp.tanh, "gelu": nn.gelu},
    "pooling": {
        "average": functools.partial(average_pool, window=2, stride=2),
        "max": functools.partial(max_pool, window=2, stride=2),
    },
    "norm": {
        "batch_norm": BatchNorm,
        "layer_norm": nn.LayerNorm,
        "group_norm": group_norm,
    },
}


class ConvNorm(nn.Module):
    """A convolution, an optional norm and an optional activation; the submodules are named `conv` and `norm`.

    `nn.Conv` holds the parameters and calls `ops.convolution`, which is faster on CPUs than JAX's convolution.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel, in pixels.
      stride: distance between windows, in pixels.
      padding: number of zeros on each side; by default kernel_size // 2, which keeps the size at stride 1.
      groups: number of channel groups; outputs of a group depend only on inputs of the same group.
      use_bias: whether the convolution has a bias; by default it has one if no norm follows.
      norm: constructor of the norm, as `Network.bound_norm` returns it, or None.
      activation: activation function, applied last, or None.
      initializer: initializer of the convolution's kernel and bias.
      scale_init: initializer of the norm's scale.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool | None = None
    norm: Layer | None = None
    activation: Activation | None = nn.relu
    initializer: LayerInitializer = HE_FAN_OUT
    scale_init: Initializer = nn.initializers.ones
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H', W', features)."""
        fan_in = self.kernel_size**2 * x.shape[-1] // self.groups
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            self.stride,
            self.kernel_size // 2 if self.padding is None else self.padding,
            feature_group_count=self.groups,
            conv_general_dilated=convolution,
            use_bias=self.norm is None if self.use_bias is None else self.use_bias,
            kernel_init=self.initializer.kernel,
            bias_init=self.initializer.bias(fan_in),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)
        if self.norm is not None:
            x = self.norm(scale_init=self.scale_init, name="norm")(x)
        return x if self.activation is None else self.activation(x)


class Dense(nn.Module):
    """A fully connected layer with parameters `kernel` and `bias`; the initializer of the bias knows the fan-in."""

    features: int
    initializer: LayerInitializer
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, C) to (B, features)."""
        fan_in = x.shape[-1]
        kernel = self.param("kernel", self.initializer.kernel, (fan_in, self.features), self.param_dtype)
        bias = self.param("bias", self.initializer.bias(fan_in), (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return dense(x, kernel) + bias[None]


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the means of all channels.

    Hu, Shen, Sun: "Squeeze-and-Excitation Networks", CVPR 2018.

    Attributes:
      squeezed: channels between the two 1x1 convolutions, which have biases and no norm.
      conv: constructor of the convolutions.
      activation: activation function after the first convolution.
      gate: activation function after the second convolution.
    """

    squeezed: int
    conv: Layer
    activation: Activation = nn.relu
    gate: Activation = nn.sigmoid

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to the same shape."""
        conv = functools.partial(self.conv, kernel_size=1, norm=None, use_bias=True)
        y = global_average_pool(x, keepdims=True)
        y = conv(self.squeezed, activation=self.activation, name="reduce")(y)
        return x * conv(x.shape[-1], activation=self.gate, name="expand")(y)


def imagenet_stem(conv: Layer, features: int, images: Array) -> Array:
    """Applies the stem of ResNet and DenseNet: 7x7/2 convolution and 3x3/2 max pooling, 1/4 of the size."""
    return max_pool(conv(features, 7, stride=2, name="stem")(images), 3, 2, padding=1)


def dropout(x: Array, rate: float, train: bool) -> Array:
    """Applies dropout with probability `rate` if `train` is true, with the RNG stream "dropout"."""
    return nn.Dropout(rate, deterministic=not train)(x)


def by_channel(values: Array) -> Array:
    """Reshapes one value per channel (C,) to (1, 1, 1, C), to broadcast against (B, H, W, C)."""
    return values[None, None, None]


def flatten(x: Array) -> Array:
    """Reshapes (B, H, W, C) to (B, H * W * C)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
