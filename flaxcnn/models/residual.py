"""The blocks that residual networks are made of, and their shortcuts; ResNet and AnyNet arrange them.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016 (basic and bottleneck blocks) and
"Identity Mappings in Deep Residual Networks", ECCV 2016 (pre-activation).
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array
from flaxcnn.ops.pooling import global_average_pool

Shortcut = Literal["projection", "zero_pad", "strided"]


def connect(x: Array, features: int, stride: int, kind: Shortcut, conv: layers.Layer) -> Array:
    """Returns a block's input in the shape of its output, called from within the block.

    That is the input itself where the shape is the same, otherwise, by `kind`:
      projection: a 1x1 convolution with norm (option B of the paper).
      zero_pad: every stride-th pixel, and zeros for the channels that are new, without parameters (option A).
      strided: a 1x1 convolution with bias and without norm.
    """
    if stride == 1 and x.shape[-1] == features:
        return x
    if kind == "zero_pad":
        padding = ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1]))
        # Not by index, of which JAX cannot tell, where the size is open, that it is as long as the convolution's.
        return jnp.pad(jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1)), padding)
    fields = {"norm": None, "use_bias": True} if kind == "strided" else {}
    return conv(features, 1, stride=stride, activation=None, name="shortcut", **fields)(x)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate that sees the mean of all (Hu, Shen, Sun: Squeeze-and-Excitation, 2018).

    Attributes:
      squeezed: channels between the two 1x1 convolutions, which have biases and no norm.
      conv: constructor of the convolutions.
    """

    squeezed: int
    conv: layers.Layer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to the same shape."""
        conv = functools.partial(self.conv, kernel_size=1, norm=None, use_bias=True)
        gate = conv(self.squeezed, name="reduce")(global_average_pool(x, keepdims=True))
        return x * conv(x.shape[-1], activation=nn.sigmoid, name="expand")(gate)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 2 of the paper).

    Attributes:
      features: output channels.
      conv: constructor of the convolutions with norm and ReLU.
      stride: of the first convolution and the shortcut.
      shortcut: kind of the shortcut where the shape changes.
      scale_init: the start of the last norm's scale; with zeros the block starts as the identity.
    """

    features: int
    conv: layers.Layer
    stride: int = 1
    shortcut: Shortcut = "projection"
    scale_init: initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        y = self.conv(self.features, 3, stride=self.stride, name="conv1")(x)
        y = self.conv(self.features, 3, activation=None, scale_init=self.scale_init, name="conv2")(y)
        return nn.relu(y + connect(x, self.features, self.stride, self.shortcut, self.conv))


class PostNormBlock(nn.Module):
    """A basic block whose second norm stands after the addition; attributes and shapes as in `BasicBlock`."""

    features: int
    conv: layers.Layer
    norm: layers.Layer
    stride: int = 1
    shortcut: Shortcut = "strided"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        y = self.conv(self.features, 3, stride=self.stride, name="conv1")(x)
        y = self.conv(self.features, 3, norm=None, activation=None, name="conv2")(y)
        y = y + connect(x, self.features, self.stride, self.shortcut, self.conv)
        return nn.relu(self.norm(name="norm2")(y))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution (figure 5 of the paper), with groups and squeeze-excitation at need.

    Attributes:
      features: output channels.
      width: channels of the 3x3 convolution.
      conv: constructor of the convolutions with norm and ReLU.
      stride: of the 3x3 convolution and the shortcut.
      groups: of the 3x3 convolution.
      squeezed: channels inside the squeeze-excitation that follows the 3x3 convolution, or 0 for none.
      shortcut: kind of the shortcut where the shape changes.
      scale_init: the start of the last norm's scale.
    """

    features: int
    width: int
    conv: layers.Layer
    stride: int = 1
    groups: int = 1
    squeezed: int = 0
    shortcut: Shortcut = "projection"
    scale_init: initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        y = self.conv(self.width, 1, name="conv1")(x)
        y = self.conv(self.width, 3, stride=self.stride, groups=self.groups, name="conv2")(y)
        if self.squeezed:
            y = SqueezeExcitation(self.squeezed, self.conv, name="se")(y)
        y = self.conv(self.features, 1, activation=None, scale_init=self.scale_init, name="conv3")(y)
        return nn.relu(y + connect(x, self.features, self.stride, self.shortcut, self.conv))


class PreActivationBlock(nn.Module):
    """Norm and ReLU before each convolution (Identity Mappings, figure 1b): basic, or a bottleneck with `width`.

    Where the shape changes the shortcut starts from the activated input; elsewhere it is the input itself, in the
    first block too, for which the paper activates it.

    Attributes:
      features: output channels.
      conv: constructor of the convolutions, without norm and activation.
      norm: constructor of the norms.
      stride: of the first 3x3 convolution and the shortcut.
      width: channels between the two 1x1 convolutions of a bottleneck, or 0 for two 3x3 convolutions.
      shortcut: kind of the shortcut where the shape changes.
      dropout: applied before the last convolution (wide ResNet).
    """

    features: int
    conv: layers.Layer
    norm: layers.Layer
    stride: int = 1
    width: int = 0
    shortcut: Shortcut = "projection"
    dropout: Callable[[Array], Array] = lambda x: x

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        if self.width:
            convolutions = ((self.width, 1, 1), (self.width, 3, self.stride), (self.features, 1, 1))
        else:
            convolutions = ((self.features, 3, self.stride), (self.features, 3, 1))
        y = residual = x
        for number, (features, kernel_size, stride) in enumerate(convolutions, start=1):
            y = nn.relu(self.norm(name=f"norm{number}")(y))
            if number == 1 and (self.stride > 1 or x.shape[-1] != self.features):
                residual = connect(y, self.features, self.stride, self.shortcut, self.conv)
            if number == len(convolutions):
                y = self.dropout(y)
            y = self.conv(features, kernel_size, stride=stride, name=f"conv{number}")(y)
        return residual + y
