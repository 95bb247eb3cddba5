"""DenseNet: each layer takes the feature maps of all previous layers of its block as input.

Huang, Liu, van der Maaten, Weinberger: "Densely Connected Convolutional Networks", CVPR 2017, table 1 (ImageNet)
and section 3 (CIFAR). Parameters are initialized as in torchvision: convolutions by He's normal distribution with
fan-in; the kernel of the classifier as in torch, and its bias to 0.
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.batch_norm import BatchNorm
from flaxcnn.models.layers import Activation, Array, Layer, Norm
from flaxcnn.models.network import Network
from flaxcnn.models.registry import register
from flaxcnn.ops import average_pool, global_average_pool


class NormConv(nn.Module):
    """The paper's composite function: norm, ReLU, convolution and dropout.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel, in pixels.
      norm: constructor of the norm, or None.
      conv: constructor of the convolution, without norm and activation.
      dropout: dropout function, applied last.
    """

    features: int
    kernel_size: int
    norm: Layer | None
    conv: Layer
    dropout: Activation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H, W, features)."""
        if self.norm is not None:
            x = self.norm(name="norm")(x)
        return self.dropout(self.conv(self.features, self.kernel_size, name="conv")(nn.relu(x)))


class DenseLayer(nn.Module):
    """One layer of a dense block: an optional 1x1 bottleneck and a 3x3 convolution.

    The layer itself concatenates its inputs. With `remat`, each feature map is therefore stored once rather than
    once per later layer (Pleiss, Chen, Huang, Li, van der Maaten, Weinberger: "Memory-Efficient Implementation of
    DenseNets", 2017).

    Attributes:
      growth_rate: output channels.
      bottleneck: channels of the 1x1 convolution, in multiples of the growth rate, or 0 for no bottleneck.
      norm_conv: constructor of `NormConv`.
    """

    growth_rate: int
    bottleneck: int
    norm_conv: Layer

    @nn.compact
    def __call__(self, maps: tuple[Array, ...]) -> Array:
        """Maps the block's input and the earlier layers' outputs, each (B, H, W, C'), to (B, H, W, growth_rate)."""
        x = jnp.concatenate(maps, axis=-1)
        if self.bottleneck:
            x = self.norm_conv(self.bottleneck * self.growth_rate, 1, name="bottleneck")(x)
        return self.norm_conv(self.growth_rate, 3, name="layer")(x)


class DenseNet(Network):
    """A stem, dense blocks, transitions between them that halve height and width, and global average pooling.

    With `remat`, each dense layer is recomputed in the backward pass.

    Attributes:
      growth_rate: output channels of each dense layer.
      depths: number of layers in each block.
      stem: "imagenet" (7x7/2 convolution and 3x3/2 max pooling) or "cifar" (3x3 convolution without norm).
      stem_features: output channels of the stem.
      bottleneck: channels of the 1x1 convolutions, in multiples of the growth rate; 0 for no 1x1 convolutions.
      compression: fraction of the channels that a transition keeps.
      norm: constructor of the norms, or None.
      dropout_rate: probability of dropout after every convolution but the stem's. The paper uses 0.2 when it trains
        without data augmentation.
    """

    growth_rate: int = 32
    depths: tuple[int, ...] = (6, 12, 24, 16)
    stem: Literal["imagenet", "cifar"] = "imagenet"
    stem_features: int = 64
    bottleneck: int = 4
    compression: float = 0.5
    # With a default factory, the class has no attribute `norm`. `nnx.bridge.ToNNX` would take such an attribute for
    # a method, which would hide the layer named `norm`.
    norm: Norm | None = dataclasses.field(default_factory=lambda: BatchNorm)
    bn_axis_name: str | None = None
    dropout_rate: float = 0.0
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images at which the pooling of every transition has a window."""
        last = 2 ** (len(self.depths) - 1)
        return 4 * (last - 1) + 1 if self.stem == "imagenet" else last

    def check_fields(self) -> None:
        """Checks that there is at least one block, and that all numbers are positive."""
        super().check_fields()
        self.check_positive("depths", "growth_rate", "stem_features", "compression")
        if not self.depths:
            raise UserError("depths of DenseNet takes a number of layers for each block, got none")

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps "stem", "block1", "transition1", "block2", ..., "norm", and the logits."""
        norm = self.bound_norm(train)
        conv = self.conv_norm(train, initializer=initializers.HE_FAN_IN, use_bias=norm is None)
        norm_conv = functools.partial(
            NormConv,
            norm=norm,
            conv=functools.partial(conv, norm=None, activation=None),
            dropout=functools.partial(layers.dropout, rate=self.dropout_rate, train=train),
        )
        if self.stem == "imagenet":
            x = layers.imagenet_stem(conv, self.stem_features, images)
        else:
            x = conv(self.stem_features, 3, norm=None, activation=None, name="stem")(images)
        maps = {"stem": x}
        for block, depth in enumerate(self.depths, start=1):
            joined = (x,)
            for index in range(1, depth + 1):
                name = f"block{block}_layer{index}"
                layer = DenseLayer(self.growth_rate, self.bottleneck, norm_conv, name=name)
                joined = (*joined, self.run_block(layer, joined))
            x = maps[f"block{block}"] = jnp.concatenate(joined, axis=-1)
            if block < len(self.depths):
                features = int(x.shape[-1] * self.compression)
                x = average_pool(norm_conv(features, 1, name=f"transition{block}")(x), 2, 2)
                maps[f"transition{block}"] = x
        if norm is not None:
            x = norm(name="norm")(x)
        x = maps["norm"] = nn.relu(x)
        return maps, self.classify(global_average_pool(x), initializers.TORCH_ZERO_BIAS)


_PAPER = "Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, 2017"


def _imagenet(name: str, *, growth_rate: int, depths: tuple[int, ...]) -> None:
    register(
        name,
        DenseNet,
        fields={"growth_rate": growth_rate, "depths": depths, "stem_features": 2 * growth_rate},
        summary=f"growth rate {growth_rate}, blocks of {'-'.join(map(str, depths))} layers with bottleneck",
        paper=_PAPER,
        input_shape=(224, 224, 3),
    )


_imagenet("densenet121", growth_rate=32, depths=(6, 12, 24, 16))
_imagenet("densenet161", growth_rate=48, depths=(6, 12, 36, 24))
_imagenet("densenet169", growth_rate=32, depths=(6, 12, 32, 32))
_imagenet("densenet201", growth_rate=32, depths=(6, 12, 48, 32))


def _cifar(name: str, summary: str, *, error: float, **fields: Any) -> None:
    register(
        name,
        DenseNet,
        fields={"stem": "cifar", **fields},
        summary=f"for CIFAR: {summary}",
        reported=f"{error:.2f} % error on CIFAR-10 with crops and flips",
        paper=_PAPER,
        input_shape=(32, 32, 3),
        num_classes=10,
    )


_cifar(
    "densenet40_12",
    "growth rate 12, 3 blocks of 12 layers, without bottleneck and compression",
    error=5.24,
    growth_rate=12,
    depths=(12, 12, 12),
    stem_features=16,
    bottleneck=0,
    compression=1.0,
)
_cifar(
    "densenet_bc_100_12",
    "growth rate 12, 3 blocks of 16 layers, with bottleneck and compression 0.5",
    error=4.51,
    growth_rate=12,
    depths=(16, 16, 16),
    stem_features=24,
)
_cifar(
    "densenet_bc_190_40",
    "growth rate 40, 3 blocks of 31 layers, with bottleneck and compression 0.5",
    error=3.46,
    growth_rate=40,
    depths=(31, 31, 31),
    stem_features=80,
)
