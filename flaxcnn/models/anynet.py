"""AnyNet, a design space of networks, and RegNet, a rule that generates the stages of an AnyNet.

Radosavovic, Kosaraju, Girshick, He, Dollar: "Designing Network Design Spaces", CVPR 2020, figures 3 and 4 and
section 3.3. An AnyNet has a stem, a body of stages and a head. The blocks of the body are ResNet's bottlenecks, so
ResNet-50 and ResNeXt-50 are points of the design space. The RegNetX and RegNetY networks are those of the paper's
appendix, with torchvision's structure and names.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.batch_norm import BatchNorm
from flaxcnn.models.layers import Array, Norm
from flaxcnn.models.network import Network
from flaxcnn.models.registry import register
from flaxcnn.models.residual import Bottleneck
from flaxcnn.ops import global_average_pool


class Stage(NamedTuple):
    """A sequence of blocks with the same number of output channels.

    Attributes:
      depth: number of blocks.
      width: output channels of each block.
      group_width: channels in each group of the 3x3 convolutions.
      bottleneck_ratio: channels of the 3x3 convolutions, divided by `width`.
      stride: stride of the first block.
    """

    depth: int
    width: int
    group_width: int
    bottleneck_ratio: float = 1.0
    stride: int = 2


_REGNETX32 = (Stage(4, 32, 16), Stage(6, 80, 16))


class AnyNet(Network):
    """A stem, a body of stages, and global average pooling.

    The default stages are those of d2l.ai's RegNetX32 (section 8.8), whose convolutions also have biases.

    Attributes:
      stages: stages of the body; each is a `Stage` or a tuple of its values.
      stem: "simple" (3x3/2 convolution) or "imagenet" (ResNet's 7x7/2 convolution and 3x3/2 max pooling).
      stem_features: output channels of the stem.
      squeeze_ratio: channels inside squeeze-excitation, divided by the block's input channels; 0 for none.
      use_bias: whether convolutions have a bias although a norm follows; without a norm they always have one.
      norm: constructor of the norms, or None.
    """

    stages: tuple[tuple[float, ...], ...] = _REGNETX32
    stem: Literal["simple", "imagenet"] = "simple"
    stem_features: int = 32
    squeeze_ratio: float = 0.0
    use_bias: bool = False
    norm: Norm | None = BatchNorm
    bn_axis_name: str | None = None
    remat: bool = False

    def check_fields(self) -> None:
        """Checks that each stage has three to five numbers, and that the groups divide its channels."""
        super().check_fields()
        self.check_positive("stages", "stem_features")
        if not self.stages or any(not 3 <= len(stage) <= 5 for stage in self.stages):
            raise UserError(
                f"a stage of AnyNet is (depth, width, group width[, bottleneck ratio[, stride]]), got {self.stages}"
            )
        for stage in self._stages():
            if any(value != int(value) for value in (*stage[:3], stage.stride)):
                raise UserError(f"depth, width, group width and stride of a stage are whole numbers, got {stage}")
            inner = round(stage.width * stage.bottleneck_ratio)
            if inner % stage.group_width or not inner:
                raise UserError(f"groups of {stage.group_width} channels do not fill the {inner} of {stage}")

    def _stages(self) -> list[Stage]:
        return [Stage(*cast(Any, values)) for values in self.stages]

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps "stem", "stage1", "stage2", ..., and the logits."""
        conv = self.conv_norm(train, use_bias=self.use_bias or self.norm is None)
        if self.stem == "simple":
            x = conv(self.stem_features, 3, stride=2, name="stem")(images)
        else:
            x = layers.imagenet_stem(conv, self.stem_features, images)
        maps = {"stem": x}
        for number, stage in enumerate(self._stages(), start=1):
            width = round(stage.width * stage.bottleneck_ratio)
            for index in range(1, stage.depth + 1):
                block = Bottleneck(
                    stage.width,
                    width,
                    conv,
                    stride=stage.stride if index == 1 else 1,
                    groups=width // stage.group_width,
                    squeezed=round(self.squeeze_ratio * x.shape[-1]),
                    name=f"stage{number}_block{index}",
                )
                x = self.run_block(block, x)
            maps[f"stage{number}"] = x
        return maps, self.classify(global_average_pool(x), initializers.gaussian(0.01))


def regnet_stages(
    depth: int,
    initial_width: int,
    slope: float,
    multiplier: float,
    group_width: int,
    *,
    bottleneck_ratio: float = 1.0,
    rounding: Literal["torchvision", "paper"] = "torchvision",
) -> tuple[Stage, ...]:
    """Generates the stages of a RegNet by the paper's quantized linear rule (equations 2 to 4).

    Args:
      depth: number of blocks d.
      initial_width: w_0 in the paper, in channels.
      slope: w_a in the paper, in channels per block.
      multiplier: w_m in the paper, the ratio of successive stage widths.
      group_width: g in the paper, in channels. A stage whose 3x3 convolutions are narrower has a single group.
      bottleneck_ratio: b in the paper: width of the 3x3 convolutions divided by the width of the stage.
      rounding: how widths are rounded to multiples of the group width. "paper" rounds to the nearest multiple, as
        the paper's code does. "torchvision" rounds halves up, and rounds up where the result would be below 90 % of
        the width. The two differ for X-400MF, Y-800MF and Y-8GF. With a bottleneck ratio above 1, both also round
        to multiples of the ratio, so that the groups fill the convolutions.

    Raises:
      UserError: the rounding is unknown, or the multiplier is not above 1.
    """
    if rounding not in ("torchvision", "paper"):
        raise UserError(f"rounding of RegNet is torchvision or paper, got {rounding!r}")
    if not multiplier > 1:
        raise UserError(f"the multiplier of RegNet must be above 1, got {multiplier}")
    linear = initial_width + slope * np.arange(depth)
    exponents = np.round(np.log(linear / initial_width) / np.log(multiplier))
    widths = (8 * np.round(initial_width * multiplier**exponents / 8)).astype(int)
    stages = []
    for width in np.unique(widths):
        inner = max(1, int(width * bottleneck_ratio))
        group = min(group_width, inner)
        multiple = _torchvision_multiple if rounding == "torchvision" else _nearest_multiple
        inner = multiple(inner, math.lcm(group, int(bottleneck_ratio)) if bottleneck_ratio > 1 else group)
        stage_depth = int((widths == width).sum())
        stages.append(Stage(stage_depth, int(inner / bottleneck_ratio), group, bottleneck_ratio))
    return tuple(stages)


def _nearest_multiple(value: int, divisor: int) -> int:
    return max(divisor, round(value / divisor) * divisor)


def _torchvision_multiple(value: int, divisor: int) -> int:
    multiple = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return multiple + divisor if multiple < 0.9 * value else multiple


# Depth, w_0, w_a, w_m and g of the published networks (the paper's tables 7 and 8, as in torchvision).
REGNETS = {
    "regnet_x_400mf": (22, 24, 24.48, 2.54, 16),
    "regnet_x_800mf": (16, 56, 35.73, 2.28, 16),
    "regnet_x_1_6gf": (18, 80, 34.01, 2.25, 24),
    "regnet_x_3_2gf": (25, 88, 26.31, 2.25, 48),
    "regnet_x_8gf": (23, 80, 49.56, 2.88, 120),
    "regnet_x_16gf": (22, 216, 55.59, 2.1, 128),
    "regnet_x_32gf": (23, 320, 69.86, 2.0, 168),
    "regnet_y_400mf": (16, 48, 27.89, 2.09, 8),
    "regnet_y_800mf": (14, 56, 38.84, 2.4, 16),
    "regnet_y_1_6gf": (27, 48, 20.71, 2.65, 24),
    "regnet_y_3_2gf": (21, 80, 42.63, 2.66, 24),
    "regnet_y_8gf": (17, 192, 76.82, 2.19, 56),
    "regnet_y_16gf": (18, 200, 106.23, 2.48, 112),
    "regnet_y_32gf": (20, 232, 115.89, 2.53, 232),
    "regnet_y_128gf": (27, 456, 160.83, 2.52, 264),
}
_PAPER = "Radosavovic, Kosaraju, Girshick, He, Dollar: Designing Network Design Spaces, 2020"


def _describe(stages: Sequence[Stage]) -> str:
    depths, widths = ("-".join(str(stage[index]) for stage in stages) for index in (0, 1))
    return f"depths {depths}, widths {widths}, group width {stages[-1].group_width}"


def _regnet(
    name: str, of: str, rounding: Literal["torchvision", "paper"] = "torchvision", *, reported: str = ""
) -> None:
    """Registers the RegNet with the parameters `REGNETS[of]`; a RegNetY is a RegNetX with squeeze-excitation."""
    stages, squeezes = regnet_stages(*REGNETS[of], rounding=rounding), of.startswith("regnet_y")
    squeeze = ", squeeze-excitation" if squeezes else ""
    register(
        name,
        AnyNet,
        fields={"stages": stages, "squeeze_ratio": 0.25 if squeezes else 0.0},
        summary=_describe(stages) + squeeze + (", widths rounded as in the paper" if rounding == "paper" else ""),
        reported=reported,
        paper=_PAPER,
        input_shape=(224, 224, 3),
    )


def _register_regnets() -> None:
    for name in REGNETS:
        _regnet(name, of=name)


register(
    "anynet",
    AnyNet,
    fields={"use_bias": True},
    summary="the design space; by default d2l.ai's RegNetX32, with biases: " + _describe(_REGNETX32),
    paper=_PAPER,
    input_shape=(96, 96, 1),
    num_classes=10,
)
_register_regnets()
_regnet(
    "regnet_x_400mf_paper",
    of="regnet_x_400mf",
    rounding="paper",
    reported="27.38 % top-1 error on ImageNet, one crop (pycls)",
)
_regnet(
    "regnet_y_800mf_paper",
    of="regnet_y_800mf",
    rounding="paper",
    reported="23.68 % top-1 error on ImageNet, one crop (pycls)",
)
_regnet(
    "regnet_y_8gf_paper",
    of="regnet_y_8gf",
    rounding="paper",
    reported="20.05 % top-1 error on ImageNet, one crop (pycls)",
)
