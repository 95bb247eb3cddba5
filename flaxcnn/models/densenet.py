"""DenseNet: every layer sees the maps of all layers before it in its block.

Huang, Liu, van der Maaten, Weinberger: "Densely Connected Convolutional Networks", CVPR 2017, table 1 (ImageNet)
and section 3 (CIFAR). The initialisation is torchvision's: He's by fan-in, classifier as in torch with bias 0.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array
from flaxcnn.models.registry import register
from flaxcnn.ops.pooling import average_pool, global_average_pool


class NormConv(nn.Module):
    """Norm, ReLU, convolution and dropout: the composite function of the paper.

    Attributes:
      features: output channels.
      kernel_size: height and width, in pixels.
      norm: constructor of the norm, or None.
      conv: constructor of the convolution, without norm and activation.
      dropout: applied last.
    """

    features: int
    kernel_size: int
    norm: layers.Layer | None
    conv: layers.Layer
    dropout: layers.Activation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H, W, features)."""
        if self.norm is not None:
            x = self.norm(name="norm")(x)
        return self.dropout(self.conv(self.features, self.kernel_size, name="conv")(nn.relu(x)))


class DenseLayer(nn.Module):
    """What one layer adds to its block: a 3x3 convolution, behind a 1x1 bottleneck if there is one.

    It joins the maps before it itself: where layers are computed again in the backward pass, the block then keeps
    each map once and not once for every later layer (Pleiss, Chen, Huang, Li, van der Maaten, Weinberger:
    "Memory-Efficient Implementation of DenseNets", 2017).

    Attributes:
      growth_rate: channels that it adds.
      bottleneck: channels between, in multiples of the growth rate, or 0 for no bottleneck.
      norm_conv: constructor of `NormConv`.
    """

    growth_rate: int
    bottleneck: int
    norm_conv: layers.Layer

    @nn.compact
    def __call__(self, maps: tuple[Array, ...]) -> Array:
        """Maps the block's input and what earlier layers added, each (B, H, W, C'), to (B, H, W, growth_rate)."""
        x = jnp.concatenate(maps, axis=-1)
        if self.bottleneck:
            x = self.norm_conv(self.bottleneck * self.growth_rate, 1, name="bottleneck")(x)
        return self.norm_conv(self.growth_rate, 3, name="layer")(x)


class DenseNet(layers.Network):
    """A stem, dense blocks with transitions between that halve the map, and the mean over the last map.

    Attributes:
      growth_rate: channels that every layer adds.
      depths: layers of each block.
      stem: "imagenet", 7x7/2 and 3x3/2 max pooling; "cifar", a bare 3x3 convolution.
      stem_features: channels of the stem.
      bottleneck: channels of the 1x1 convolutions, in multiples of the growth rate; 0 for none.
      compression: share of the channels that a transition keeps.
      norm: constructor of the norms, or None.
      dropout_rate: after every convolution but the stem's (0.2 in the paper where data are not augmented).
      remat: whether each layer of a block is computed again in the backward pass instead of being kept: less memory
        (but not on CPUs, where XLA undoes it), about a third more work; changes no value.
    """

    growth_rate: int = 32
    depths: tuple[int, ...] = (6, 12, 24, 16)
    stem: Literal["imagenet", "cifar"] = "imagenet"
    stem_features: int = 64
    bottleneck: int = 4
    compression: float = 0.5
    # No attribute of the class: `nnx.bridge.ToNNX` would take it for a method in the place of the layer `norm`.
    norm: layers.Norm | None = dataclasses.field(default_factory=lambda: layers.BatchNorm)
    bn_axis_name: str | None = None
    dropout_rate: float = 0.0
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """The least size from which every transition has a window."""
        last = 2 ** (len(self.depths) - 1)
        return 4 * (last - 1) + 1 if self.stem == "imagenet" else last

    def check_fields(self) -> None:
        """At least one block."""
        super().check_fields()
        self.check_positive("depths", "growth_rate", "stem_features", "compression")
        if not self.depths:
            raise UserError("depths of DenseNet takes a number of layers for each block, got none")

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the maps stem, block1, transition1, block2 and so on, norm, and the logits."""
        norm = self.bound_norm(train)
        conv = self.conv_norm(train, scheme=initializers.HE_FAN_IN, use_bias=norm is None)
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

for _depth, _growth_rate, _depths in (
    (121, 32, (6, 12, 24, 16)),
    (161, 48, (6, 12, 36, 24)),
    (169, 32, (6, 12, 32, 32)),
    (201, 32, (6, 12, 48, 32)),
):
    register(
        f"densenet{_depth}",
        DenseNet,
        fields={"growth_rate": _growth_rate, "depths": _depths, "stem_features": 2 * _growth_rate},
        summary=f"growth rate {_growth_rate}, blocks of {'-'.join(map(str, _depths))} layers with bottleneck",
        paper=_PAPER,
        input_shape=(224, 224, 3),
    )
for _name, _growth_rate, _error, _fields in (
    ("densenet40_12", 12, 5.24, {"depths": (12,) * 3, "stem_features": 16, "bottleneck": 0, "compression": 1.0}),
    ("densenet_bc_100_12", 12, 4.51, {"depths": (16,) * 3, "stem_features": 24}),
    ("densenet_bc_190_40", 40, 3.46, {"depths": (31,) * 3, "stem_features": 80}),
):
    _kind = "with bottleneck and compression 0.5" if "bc" in _name else "without bottleneck and compression"
    register(
        _name,
        DenseNet,
        fields={"growth_rate": _growth_rate, "stem": "cifar", **_fields},
        summary=f"for CIFAR: growth rate {_growth_rate}, 3 blocks of {_fields['depths'][0]} layers, {_kind}",
        reported=f"{_error:.2f} % error on CIFAR-10 with crops and flips",
        paper=_PAPER,
        input_shape=(32, 32, 3),
        num_classes=10,
    )
