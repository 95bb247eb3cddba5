"""Residual blocks and their shortcuts, of which ResNet and AnyNet are composed.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016 (basic and bottleneck blocks) and
"Identity Mappings in Deep Residual Networks", ECCV 2016 (pre-activation).
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcnn.models.initializers import Initializer
from flaxcnn.models.layers import Array, Layer, SqueezeExcitation

Shortcut = Literal["projection", "zero_pad", "strided"]


def connect(x: Array, features: int, stride: int, kind: Shortcut, conv: Layer) -> Array:
    """Applies a block's shortcut: returns its input in the shape of its output. Called from within the block.

    If the shape does not change, the shortcut returns `x`. Otherwise it depends on `kind`:
      projection: a 1x1 convolution with norm (option B of the paper).
      zero_pad: every stride-th pixel, with zeros as the additional channels; no parameters (option A).
      strided: a 1x1 convolution with bias and without norm.
    """
    if stride == 1 and x.shape[-1] == features:
        return x
    if kind == "zero_pad":
        padding = ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1]))
        # With indexing and a symbolic size, JAX could not prove that the result has the convolution's shape.
        return jnp.pad(jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1)), padding)
    fields = {"norm": None, "use_bias": True} if kind == "strided" else {}
    return conv(features, 1, stride=stride, activation=None, name="shortcut", **fields)(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (figure 2 of the paper).

    Attributes:
      features: output channels.
      conv: constructor of the convolutions with norm and ReLU.
      stride: stride of the first convolution and of the shortcut.
      shortcut: kind of the shortcut if the shape changes, see `connect`.
      scale_init: initializer of the last norm's scale; with zeros the block is initially the identity.
    """

    features: int
    conv: Layer
    stride: int = 1
    shortcut: Shortcut = "projection"
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        y = self.conv(self.features, 3, stride=self.stride, name="conv1")(x)
        y = self.conv(self.features, 3, activation=None, scale_init=self.scale_init, name="conv2")(y)
        return nn.relu(y + connect(x, self.features, self.stride, self.shortcut, self.conv))


class PostNormBlock(nn.Module):
    """A basic block whose second norm follows the addition; the attributes are those of `BasicBlock` and `norm`.

    Attributes:
      norm: constructor of the second norm.
    """

    features: int
    conv: Layer
    norm: Layer
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
    """A 1x1, a 3x3 and a 1x1 convolution (figure 5 of the paper), with optional groups and squeeze-excitation.

    Attributes:
      features: output channels.
      width: channels of the 3x3 convolution.
      conv: constructor of the convolutions with norm and ReLU.
      stride: stride of the 3x3 convolution and of the shortcut.
      groups: groups of the 3x3 convolution.
      squeezed: channels inside the squeeze-excitation that follows the 3x3 convolution, or 0 for none.
      shortcut: kind of the shortcut if the shape changes, see `connect`.
      scale_init: initializer of the last norm's scale.
    """

    features: int
    width: int
    conv: Layer
    stride: int = 1
    groups: int = 1
    squeezed: int = 0
    shortcut: Shortcut = "projection"
    scale_init: Initializer = nn.initializers.ones

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
    """Two 3x3 convolutions, each preceded by a norm and a ReLU ("Identity Mappings", figure 1b).

    If the shape changes, the input of the shortcut is the block's input after norm and ReLU. Otherwise the shortcut
    is the block's input. Difference from the paper: its first block always has the shortcut after norm and ReLU.

    Attributes:
      features: output channels.
      conv: constructor of the convolutions, without norm and activation.
      norm: constructor of the norms.
      stride: stride of the first convolution and of the shortcut.
      shortcut: kind of the shortcut if the shape changes, see `connect`.
      dropout: dropout function, applied before the last convolution (wide ResNet).
    """

    features: int
    conv: Layer
    norm: Layer
    stride: int = 1
    shortcut: Shortcut = "projection"
    dropout: Callable[[Array], Array] = lambda x: x

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        y = nn.relu(self.norm(name="norm1")(x))
        residual = _connect_activated(x, y, self.features, self.stride, self.shortcut, self.conv)
        y = self.conv(self.features, 3, stride=self.stride, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        return residual + self.conv(self.features, 3, name="conv2")(self.dropout(y))


class PreActivationBottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, each preceded by a norm and a ReLU; otherwise like `PreActivationBlock`.

    Attributes:
      width: channels of the 3x3 convolution, which has the stride of the block.
    """

    features: int
    width: int
    conv: Layer
    norm: Layer
    stride: int = 1
    shortcut: Shortcut = "projection"
    dropout: Callable[[Array], Array] = lambda x: x

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        y = nn.relu(self.norm(name="norm1")(x))
        residual = _connect_activated(x, y, self.features, self.stride, self.shortcut, self.conv)
        y = self.conv(self.width, 1, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(self.width, 3, stride=self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="norm3")(y))
        return residual + self.conv(self.features, 1, name="conv3")(self.dropout(y))


def _connect_activated(
    x: Array, activated: Array, features: int, stride: int, kind: Shortcut, conv: Layer
) -> Array:
    """Returns `x` if the block keeps its shape; otherwise applies the shortcut to `activated`."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return connect(activated, features, stride, kind, conv)
