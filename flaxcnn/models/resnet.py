"""Residual networks: ResNet, ResNeXt and wide ResNet, made of the blocks of `residual`.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016 (basic and bottleneck blocks) and
"Identity Mappings in Deep Residual Networks", ECCV 2016 (pre-activation); Xie, Girshick, Dollar, Tu, He:
"Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017; Zagoruyko, Komodakis: "Wide Residual
Networks", BMVC 2016.

What differs from the papers: the bottleneck strides in its 3x3 convolution and not in the first 1x1 (torchvision's
"v1.5"), and the classifier starts from torch's distribution.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array
from flaxcnn.models.registry import register
from flaxcnn.models.residual import BasicBlock, Bottleneck, PostNormBlock, PreActivationBlock, Shortcut
from flaxcnn.ops.pooling import average_pool, global_average_pool


class ResNet(layers.Network):
    """A stem, stages of residual blocks of which all but the first halve the map, and the mean over the last map.

    Attributes:
      block: "basic", "bottleneck", "post_norm", "preactivation" or "preactivation_bottleneck".
      depths: blocks of each stage.
      widths: channels of each stage's 3x3 convolutions, before `groups` and `width_per_group`; a bottleneck puts
        out four times as many.
      groups: groups of a bottleneck's 3x3 convolution (ResNeXt's cardinality).
      width_per_group: channels of each group in a stage of width 64, which scales with the width (ResNeXt's
        second number; 128 in `wide_resnet50_2`).
      stem: "imagenet", 7x7/2 and 3x3/2 max pooling; "cifar", 3x3; "normed_cifar", 3x3 on a normalised input.
      stem_features: channels of the stem.
      shortcut: where the shape changes: "projection", "zero_pad" or "strided", as in `residual.connect`.
      use_bias: whether convolutions have biases beside the norm; without norm they have.
      zero_init_residual: whether the last norm of each block starts from 0 (Goyal et al. 2017).
      pool_window: the last map is averaged in windows of this size, which are then flattened, or over all of it
        with 0.
      norm: constructor of the norms, or None.
      dropout_rate: inside pre-activation blocks (wide ResNet).
      remat: whether each residual block is computed again in the backward pass instead of being kept: less memory
        (but not on CPUs, where XLA undoes it), about a third more work; changes no value.
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
    # No attribute of the class: `nnx.bridge.ToNNX` would take it for a method in the place of the layer `norm`.
    norm: layers.Norm | None = dataclasses.field(default_factory=lambda: layers.BatchNorm)
    bn_axis_name: str | None = None
    dropout_rate: float = 0.0
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """One pixel, or as many as leave a window for the last pooling."""
        reduction = 2 ** (len(self.depths) - 1) * (4 if self.stem == "imagenet" else 1)
        return max(self.pool_window - 1, 0) * reduction + 1

    def check_fields(self) -> None:
        """A depth and a width for each stage, and no field that would do nothing."""
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
        """Returns the maps stem, stage1 and so on, and the logits."""
        use_bias = self.use_bias or self.norm is None
        conv = self.conv_norm(train, use_bias=use_bias)
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
                name = f"stage{stage}_block{index}"
                x = self.run_block(self._block(width, stride, conv, norm, train, name), x)
            maps[f"stage{stage}"] = x
        if preactivation:
            x = nn.relu(norm(name="norm")(x))
        if self.pool_window:
            x = layers.flatten(average_pool(x, self.pool_window, self.pool_window))
        else:
            x = global_average_pool(x)
        return maps, self.classify(x, initializers.TORCH)

    def _block(self, width, stride, conv, norm, train, name) -> nn.Module:
        inner = int(width * self.width_per_group / 64) * self.groups
        common = {"stride": stride, "shortcut": self.shortcut, "name": name}
        init = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        match self.block:
            case "basic":
                return BasicBlock(width, conv, scale_init=init, **common)
            case "bottleneck":
                return Bottleneck(4 * width, inner, conv, groups=self.groups, scale_init=init, **common)
            case "post_norm":
                return PostNormBlock(width, conv, norm, **common)
        dropout = functools.partial(layers.dropout, rate=self.dropout_rate, train=train)
        conv = functools.partial(conv, norm=None, activation=None)
        if self.block == "preactivation":
            return PreActivationBlock(width, conv, norm, dropout=dropout, **common)
        return PreActivationBlock(4 * width, conv, norm, width=inner, dropout=dropout, **common)


def _no_norm(name: str) -> Callable[[Array], Array]:
    return lambda x: x


_RESNET = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016"
_RESNEXT = "Xie, Girshick, Dollar, Tu, He: Aggregated Residual Transformations for Deep Neural Networks, 2017"
_WIDE = "Zagoruyko, Komodakis: Wide Residual Networks, 2016"
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _imagenet(name: str, depth: int, paper: str, summary: str, **fields) -> None:
    block = "basic" if depth < 50 else "bottleneck"
    fields = {"block": block, "depths": _DEPTHS[depth], **fields}
    register(name, ResNet, fields=fields, summary=summary, paper=paper, input_shape=(224, 224, 3))


def _cifar(name: str, depths: tuple[int, ...], paper: str, summary: str, error: float, **fields) -> None:
    register(
        name,
        ResNet,
        fields={"depths": depths, "stem": "cifar", **fields},
        summary=summary,
        reported=f"{error:.2f} % error on CIFAR-10 with crops and flips",
        paper=paper,
        input_shape=(32, 32, 3),
        num_classes=10,
    )


for _depth, _stages in _DEPTHS.items():
    _kind = "basic" if _depth < 50 else "bottleneck"
    _imagenet(f"resnet{_depth}", _depth, _RESNET, f"{_kind} blocks {'-'.join(map(str, _stages))}")
for _depth, _groups, _width in ((50, 32, 4), (101, 32, 8), (101, 64, 4)):
    _imagenet(
        f"resnext{_depth}_{_groups}x{_width}d",
        _depth,
        _RESNEXT,
        f"resnet{_depth} with {_groups} groups of {_width} channels in the first stage's 3x3 convolutions",
        groups=_groups,
        width_per_group=_width,
    )
for _depth in (50, 101):
    _imagenet(
        f"wide_resnet{_depth}_2",
        _depth,
        _WIDE,
        f"resnet{_depth} with 3x3 convolutions twice as wide",
        width_per_group=128,
    )
for _depth, _error in ((20, 8.75), (32, 7.51), (44, 7.17), (56, 6.97), (110, 6.43)):
    _blocks = (_depth - 2) // 6
    _cifar(
        f"resnet{_depth}",
        (_blocks,) * 3,
        _RESNET,
        f"for CIFAR: three stages of {_blocks} basic blocks, 16-32-64 channels, option A shortcuts",
        _error,
        block="basic",
        widths=(16, 32, 64),
        stem_features=16,
        shortcut="zero_pad",
    )
for _depth, _factor, _error in ((28, 10, 4.00), (40, 4, 4.53)):
    _blocks = (_depth - 4) // 6
    _cifar(
        f"wrn_{_depth}_{_factor}",
        (_blocks,) * 3,
        _WIDE,
        f"pre-activation, three stages of {_blocks} basic blocks, {_factor} times as wide as 16-32-64",
        _error,
        block="preactivation",
        widths=(16 * _factor, 32 * _factor, 64 * _factor),
        stem_features=16,
    )
_cifar(
    "resnext29_8x64d",
    (3, 3, 3),
    _RESNEXT,
    "for CIFAR: three stages of 3 bottlenecks, 8 groups of 64 channels in the first",
    3.65,
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
    "normalised input, 4x4 average pooling",
    paper=_RESNET,
    input_shape=(224, 224, 3),
    num_classes=10,
)
