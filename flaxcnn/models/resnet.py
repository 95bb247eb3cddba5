"""Residual networks: ResNet, ResNeXt and wide ResNet.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016 (basic and bottleneck blocks) and
"Identity Mappings in Deep Residual Networks", ECCV 2016 (pre-activation); Xie, Girshick, Dollar, Tu, He:
"Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017; Zagoruyko, Komodakis: "Wide Residual
Networks", BMVC 2016.

Differences from the papers: in a bottleneck the 3x3 convolution has the stride and not the first 1x1 convolution
(torchvision's "v1.5"), and the classifier is initialized as in torch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.batch_norm import BatchNorm
from flaxcnn.models.layers import Array, Layer
from flaxcnn.models.network import Network
from flaxcnn.models.registry import register
from flaxcnn.models.residual import (
    BasicBlock,
    Bottleneck,
    PostNormBlock,
    PreActivationBlock,
    PreActivationBottleneck,
    Shortcut,
)
from flaxcnn.ops import average_pool, global_average_pool


class ResNet(Network):
    """A stem, stages of residual blocks, and average pooling. Every stage but the first halves height and width.

    Attributes:
      block: "basic", "bottleneck", "post_norm", "preactivation" or "preactivation_bottleneck".
      depths: number of blocks in each stage.
      widths: base width of each stage. Blocks of two 3x3 convolutions have this many channels. A bottleneck has
        groups * width_per_group * width / 64 channels in its 3x3 convolution, and 4 * width output channels.
      groups: number of channel groups of a bottleneck's 3x3 convolution (ResNeXt's cardinality).
      width_per_group: channels in each group of a stage of width 64 (4 in `resnext50_32x4d`, 128 in
        `wide_resnet50_2`); wider stages have proportionally more.
      stem: "imagenet" (7x7/2 convolution and 3x3/2 max pooling), "cifar" (3x3 convolution) or "normed_cifar" (norm
        and 3x3 convolution).
      stem_features: output channels of the stem.
      shortcut: kind of the shortcut of blocks that change the shape, see `residual.connect`.
      use_bias: whether convolutions have a bias although a norm follows; without a norm they always have one.
      zero_init_residual: whether the scale of each block's last norm is initialized to 0 (Goyal et al. 2017).
      pool_window: window size of the average pooling after the last stage, whose result is flattened; 0 for global
        average pooling.
      norm: constructor of the norms, or None.
      dropout_rate: probability of dropout inside pre-activation blocks (wide ResNet).
    """

    block: Literal["basic", "bottleneck", "post_norm", "preactivation", "preactivation_bottleneck"] = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 1
    width_per_group: int = 64
    stem: Literal["imagenet", "cifar", "normed_cifar"] = "imagenet"
    stem_features: int = 64
    shortcut: Shortcut = "projection"
    use_bias: bool = False
    zero_init_residual: bool = False
    pool_window: int = 0
    # With a default factory, the class has no attribute `norm`. `nnx.bridge.ToNNX` would take such an attribute for
    # a method, which would hide the layer named `norm`.
    norm: layers.Norm | None = dataclasses.field(default_factory=lambda: BatchNorm)
    bn_axis_name: str | None = None
    dropout_rate: float = 0.0
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images, in pixels.

        It is 1 with global average pooling. Otherwise the last feature map must hold one window of `pool_window`
        rows and columns.
        """
        reduction = 2 ** (len(self.depths) - 1) * (4 if self.stem == "imagenet" else 1)
        return max(self.pool_window - 1, 0) * reduction + 1

    def check_fields(self) -> None:
        """Checks that each stage has a depth and a width, and that no field is set that would have no effect."""
        super().check_fields()
        self.check_positive("depths", "widths", "groups", "width_per_group", "stem_features")
        if not self.depths or len(self.depths) != len(self.widths):
            raise UserError(f"ResNet takes a depth and a width a stage, got {self.depths} and {self.widths}")
        outputs = [width * (4 if "bottleneck" in self.block else 1) for width in self.widths]
        if self.shortcut == "zero_pad" and [self.stem_features, *outputs] != sorted([self.stem_features, *outputs]):
            raise UserError(
                f"zero_pad shortcuts of ResNet need channels that do not fall, got {self.stem_features} from the "
                f"stem and widths {self.widths}"
            )
        idle = {
            "groups": self.groups != 1 and "bottleneck" not in self.block,
            "width_per_group": self.width_per_group != 64 and "bottleneck" not in self.block,
            "dropout_rate": self.dropout_rate and "preactivation" not in self.block,
            "zero_init_residual": self.zero_init_residual and self.block not in ("basic", "bottleneck"),
        }
        for field, is_idle in idle.items():
            if is_idle:
                raise UserError(
                    f"{field} of ResNet does nothing with blocks of the kind {self.block}; leave it out"
                )

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps "stem", "stage1", "stage2", ..., and the logits."""
        conv = self.conv_norm(train, use_bias=self.use_bias or self.norm is None)
        norm = self.bound_norm(train) or _no_norm
        preactivation = self.block.startswith("preactivation")
        if self.stem == "imagenet":
            x = layers.imagenet_stem(conv, self.stem_features, images)
        else:
            x = norm(name="input_norm")(images) if self.stem == "normed_cifar" else images
            plain = {"norm": None, "activation": None} if preactivation else {}
            x = conv(self.stem_features, 3, name="stem", **plain)(x)
        maps = {"stem": x}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            for index in range(1, depth + 1):
                stride = 2 if stage > 1 and index == 1 else 1
                block = self._block(f"stage{stage}_block{index}", width, stride, conv, norm, train)
                x = self.run_block(block, x)
            maps[f"stage{stage}"] = x
        if preactivation:
            x = nn.relu(norm(name="norm")(x))
        if self.pool_window:
            x = layers.flatten(average_pool(x, self.pool_window, self.pool_window))
        else:
            x = global_average_pool(x)
        return maps, self.classify(x, initializers.TORCH)

    def _block(
        self, name: str, width: int, stride: int, conv: Layer, norm: Callable[..., Any], train: bool
    ) -> nn.Module:
        """Returns a block of the type `self.block`; `width` is the base width, `conv` includes norm and ReLU."""
        inner = int(width * self.width_per_group / 64) * self.groups
        common: dict[str, Any] = {"stride": stride, "shortcut": self.shortcut, "name": name}
        scale_init = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        bare_conv = functools.partial(conv, norm=None, activation=None)
        dropout = functools.partial(layers.dropout, rate=self.dropout_rate, train=train)
        match self.block:
            case "basic":
                return BasicBlock(width, conv, scale_init=scale_init, **common)
            case "bottleneck":
                return Bottleneck(4 * width, inner, conv, groups=self.groups, scale_init=scale_init, **common)
            case "post_norm":
                return PostNormBlock(width, conv, norm, **common)
            case "preactivation":
                return PreActivationBlock(width, bare_conv, norm, dropout=dropout, **common)
            case "preactivation_bottleneck":
                return PreActivationBottleneck(4 * width, inner, bare_conv, norm, dropout=dropout, **common)


def _no_norm(name: str) -> Callable[[Array], Array]:
    return lambda x: x


_RESNET = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016"
_RESNEXT = "Xie, Girshick, Dollar, Tu, He: Aggregated Residual Transformations for Deep Neural Networks, 2017"
_WIDE = "Zagoruyko, Komodakis: Wide Residual Networks, 2016"


def _imagenet(name: str, paper: str, summary: str, **fields: Any) -> None:
    register(name, ResNet, fields=fields, summary=summary, paper=paper, input_shape=(224, 224, 3))


_imagenet("resnet18", _RESNET, "basic blocks 2-2-2-2", block="basic", depths=(2, 2, 2, 2))
_imagenet("resnet34", _RESNET, "basic blocks 3-4-6-3", block="basic", depths=(3, 4, 6, 3))
_imagenet("resnet50", _RESNET, "bottleneck blocks 3-4-6-3", block="bottleneck", depths=(3, 4, 6, 3))
_imagenet("resnet101", _RESNET, "bottleneck blocks 3-4-23-3", block="bottleneck", depths=(3, 4, 23, 3))
_imagenet("resnet152", _RESNET, "bottleneck blocks 3-8-36-3", block="bottleneck", depths=(3, 8, 36, 3))
_imagenet(
    "resnext50_32x4d",
    _RESNEXT,
    "resnet50 with 32 groups of 4 channels in the first stage's 3x3 convolutions",
    block="bottleneck",
    depths=(3, 4, 6, 3),
    groups=32,
    width_per_group=4,
)
_imagenet(
    "resnext101_32x8d",
    _RESNEXT,
    "resnet101 with 32 groups of 8 channels in the first stage's 3x3 convolutions",
    block="bottleneck",
    depths=(3, 4, 23, 3),
    groups=32,
    width_per_group=8,
)
_imagenet(
    "resnext101_64x4d",
    _RESNEXT,
    "resnet101 with 64 groups of 4 channels in the first stage's 3x3 convolutions",
    block="bottleneck",
    depths=(3, 4, 23, 3),
    groups=64,
    width_per_group=4,
)
_imagenet(
    "wide_resnet50_2",
    _WIDE,
    "resnet50 with 3x3 convolutions twice as wide",
    block="bottleneck",
    depths=(3, 4, 6, 3),
    width_per_group=128,
)
_imagenet(
    "wide_resnet101_2",
    _WIDE,
    "resnet101 with 3x3 convolutions twice as wide",
    block="bottleneck",
    depths=(3, 4, 23, 3),
    width_per_group=128,
)


def _cifar(name: str, paper: str, summary: str, *, error: float, **fields: Any) -> None:
    register(
        name,
        ResNet,
        fields={"stem": "cifar", **fields},
        summary=summary,
        reported=f"{error:.2f} % error on CIFAR-10 with crops and flips",
        paper=paper,
        input_shape=(32, 32, 3),
        num_classes=10,
    )


def _resnet_cifar(name: str, blocks: int, error: float) -> None:
    _cifar(
        name,
        _RESNET,
        f"for CIFAR: three stages of {blocks} basic blocks, 16-32-64 channels, option A shortcuts",
        error=error,
        block="basic",
        depths=(blocks, blocks, blocks),
        widths=(16, 32, 64),
        stem_features=16,
        shortcut="zero_pad",
    )


_resnet_cifar("resnet20", blocks=3, error=8.75)
_resnet_cifar("resnet32", blocks=5, error=7.51)
_resnet_cifar("resnet44", blocks=7, error=7.17)
_resnet_cifar("resnet56", blocks=9, error=6.97)
_resnet_cifar("resnet110", blocks=18, error=6.43)
_cifar(
    "wrn_28_10",
    _WIDE,
    "pre-activation, three stages of 4 basic blocks, 10 times as wide as 16-32-64",
    error=4.00,
    block="preactivation",
    depths=(4, 4, 4),
    widths=(160, 320, 640),
    stem_features=16,
)
_cifar(
    "wrn_40_4",
    _WIDE,
    "pre-activation, three stages of 6 basic blocks, 4 times as wide as 16-32-64",
    error=4.53,
    block="preactivation",
    depths=(6, 6, 6),
    widths=(64, 128, 256),
    stem_features=16,
)
_cifar(
    "resnext29_8x64d",
    _RESNEXT,
    "for CIFAR: three stages of 3 bottlenecks, 8 groups of 64 channels in the first",
    error=3.65,
    depths=(3, 3, 3),
    widths=(64, 128, 256),
    groups=8,
)
register(
    "resnet30",
    ResNet,
    fields={
        "block": "post_norm",
        "depths": (2, 5, 5, 2),
        "stem": "normed_cifar",
        "shortcut": "strided",
        "use_bias": True,
        "pool_window": 4,
    },
    summary="basic blocks 2-5-5-2 with biases and the second BatchNorm after the addition, 3x3 stem on a "
    "normalized input, 4x4 average pooling",
    paper=_RESNET,
    input_shape=(224, 224, 3),
    num_classes=10,
)
