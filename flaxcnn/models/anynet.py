"""AnyNet, the design space of stem, body and head, and RegNet, the rule that generates its stages.

Radosavovic, Kosaraju, Girshick, He, Dollar: "Designing Network Design Spaces", CVPR 2020, figures 3 and 4 and
section 3.3; the published RegNetX and RegNetY of its appendix in torchvision's form and names. The body's blocks
are ResNet's bottlenecks, so that ResNet-50 and ResNeXt-50 are points of the space.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array
from flaxcnn.models.registry import register
from flaxcnn.models.residual import Bottleneck
from flaxcnn.ops.pooling import global_average_pool


class Stage(NamedTuple):
    """A run of equal blocks.

    Attributes:
      depth: number of blocks.
      width: output channels.
      group_width: channels in each group of the 3x3 convolutions.
      bottleneck_ratio: channels of the 3x3 convolutions, as a share of the width.
      stride: of the first block.
    """

    depth: int
    width: int
    group_width: int
    bottleneck_ratio: float = 1.0
    stride: int = 2


_REGNETX32 = (Stage(4, 32, 16), Stage(6, 80, 16))


class AnyNet(layers.Network):
    """A stem, a body of stages, and the mean over the last map.

    The defaults are the stages of d2l.ai's RegNetX32 (section 8.8), whose convolutions have biases besides.

    Attributes:
      stages: the body, each entry a `Stage` or its values in order.
      stem: "simple", 3x3/2, or "imagenet", ResNet's 7x7/2 and 3x3/2 max pooling.
      stem_features: channels of the stem.
      squeeze_ratio: channels inside squeeze-excitation as a share of a block's input channels; 0 for none.
      use_bias: whether convolutions have biases beside the norm.
      norm: constructor of the norms, or None.
      remat: whether each block is computed again in the backward pass instead of being kept: less memory (but not
        on CPUs, where XLA undoes it), about a third more work; changes no value.
    """

    stages: tuple[tuple[float, ...], ...] = _REGNETX32
    stem: Literal["simple", "imagenet"] = "simple"
    stem_features: int = 32
    squeeze_ratio: float = 0.0
    use_bias: bool = False
    norm: layers.Norm | None = layers.BatchNorm
    bn_axis_name: str | None = None
    remat: bool = False

    def check_fields(self) -> None:
        """Three to five numbers a stage, and groups that fill the 3x3 convolutions."""
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
        """Returns the maps stem, stage1 and so on, and the logits."""
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
    """Generates the stages of a RegNet by the paper's quantised linear rule (equations 2 to 4).

    Args:
      depth: number of blocks d.
      initial_width: w_0, in channels.
      slope: w_a, channels a block.
      multiplier: w_m, the ratio of successive stage widths.
      group_width: g, in channels; at most the stage's own width.
      bottleneck_ratio: b, the width of the 3x3 convolution as a share of the stage's.
      rounding: how widths become multiples of the group width: to the nearest, as in the paper's code, or, as in
        torchvision, half upwards and never to less than 90 %. They differ for X-400MF, Y-800MF and Y-8GF. With a
        ratio above 1 the multiple is also one of the ratio, in both, so that groups fill the convolutions.

    Raises:
      UserError: another rounding, or a multiplier that does not widen.
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


# depth, w_0, w_a, w_m, g of the published networks (the paper's tables 7 and 8, as in torchvision).
REGNETS = {
    "x_400mf": (22, 24, 24.48, 2.54, 16),
    "x_800mf": (16, 56, 35.73, 2.28, 16),
    "x_1_6gf": (18, 80, 34.01, 2.25, 24),
    "x_3_2gf": (25, 88, 26.31, 2.25, 48),
    "x_8gf": (23, 80, 49.56, 2.88, 120),
    "x_16gf": (22, 216, 55.59, 2.1, 128),
    "x_32gf": (23, 320, 69.86, 2.0, 168),
    "y_400mf": (16, 48, 27.89, 2.09, 8),
    "y_800mf": (14, 56, 38.84, 2.4, 16),
    "y_1_6gf": (27, 48, 20.71, 2.65, 24),
    "y_3_2gf": (21, 80, 42.63, 2.66, 24),
    "y_8gf": (17, 192, 76.82, 2.19, 56),
    "y_16gf": (18, 200, 106.23, 2.48, 112),
    "y_32gf": (20, 232, 115.89, 2.53, 232),
    "y_128gf": (27, 456, 160.83, 2.52, 264),
}
_PAPER = "Radosavovic, Kosaraju, Girshick, He, Dollar: Designing Network Design Spaces, 2020"


def _describe(stages: Sequence[Stage]) -> str:
    depths, widths = ("-".join(str(stage[index]) for stage in stages) for index in (0, 1))
    return f"depths {depths}, widths {widths}, group width {stages[-1].group_width}"


def _register_regnet(name: str, key: str, rounding: Literal["torchvision", "paper"], reported: str = "") -> None:
    stages = regnet_stages(*REGNETS[key], rounding=rounding)
    squeeze = ", squeeze-excitation" if key[0] == "y" else ""
    register(
        name,
        AnyNet,
        fields={"stages": stages, "squeeze_ratio": 0.25 if key[0] == "y" else 0.0},
        summary=_describe(stages) + squeeze + (", widths rounded as in the paper" if rounding == "paper" else ""),
        reported=reported,
        paper=_PAPER,
        input_shape=(224, 224, 3),
    )


register(
    "anynet",
    AnyNet,
    fields={"use_bias": True},
    summary="the design space; by default d2l.ai's RegNetX32, with biases: " + _describe(_REGNETX32),
    paper=_PAPER,
    input_shape=(96, 96, 1),
    num_classes=10,
)
for _key in REGNETS:
    _register_regnet(f"regnet_{_key}", _key, "torchvision")
for _key, _error in (("x_400mf", 27.38), ("y_800mf", 23.68), ("y_8gf", 20.05)):
    _register_regnet(f"regnet_{_key}_paper", _key, "paper", f"{_error} % top-1 error on ImageNet, one crop (pycls)")
