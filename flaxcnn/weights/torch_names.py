"""Names of layers in torchvision, for the networks of each family."""

import dataclasses
import re
from collections.abc import Callable, Mapping

from flaxcnn.errors import UserError
from flaxcnn.models.alexnet import AlexNet
from flaxcnn.models.anynet import AnyNet
from flaxcnn.models.densenet import DenseNet
from flaxcnn.models.googlenet import GoogLeNet
from flaxcnn.models.network import Network
from flaxcnn.models.resnet import ResNet
from flaxcnn.models.vgg import VGG


@dataclasses.dataclass(frozen=True)
class TorchNames:
    """Mapping from layer paths of a network in this package to layer names in torchvision.

    Attributes:
      rules: pairs of a pattern, which must match a whole layer path, and a function from the match to the name in
        torchvision.
      first: path of the layer that takes the images.
      flattened: height and width of the feature map, by pattern of the layer path, for dense layers whose input is
        a flattened feature map. (torch flattens NCHW feature maps, this package flattens NHWC.)
    """

    rules: tuple[tuple[str, Callable[[re.Match], str]], ...]
    first: str
    flattened: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def torch_layer(self, path: str) -> str:
        """Returns the name in torchvision of the layer at a path.

        Raises:
          UserError: torchvision's network has no such layer.
        """
        for pattern, name in self.rules:
            if match := re.fullmatch(pattern, path):
                return name(match)
        raise UserError(f"torchvision's network has no layer like {path}; leave the fields that add it out")

    def map_size(self, path: str) -> int | None:
        """Returns the size of the feature map that is flattened for a dense layer; None for other layers."""
        return next((size for pattern, size in self.flattened.items() if re.fullmatch(pattern, path)), None)


def _alexnet(model: AlexNet) -> TorchNames:
    convolutions, dense = (0, 3, 6, 8, 10), {"fc6": 1, "fc7": 4, "head": 6}
    return TorchNames(
        rules=(
            (r"conv(\d)/conv", lambda m: f"features.{convolutions[int(m[1]) - 1]}"),
            (r"fc6|fc7|head", lambda m: f"classifier.{dense[m[0]]}"),
        ),
        first="conv1/conv",
        flattened={"fc6": model.pooled_size},
    )


def _vgg(model: VGG) -> TorchNames:
    # torch numbers all layers in one list: convolution, norm if any, ReLU, ..., and pooling at the end of a block.
    step = 2 if model.norm is None else 3
    starts = [sum(step * depth + 1 for depth, _ in model.blocks[:block]) for block in range(len(model.blocks))]
    dense = {"fc6": 0, "fc7": 3, "head": 6}

    def position(match: re.Match) -> int:
        return starts[int(match[1]) - 1] + step * (int(match[2]) - 1)

    return TorchNames(
        rules=(
            (r"stage(\d+)_conv(\d+)/conv", lambda m: f"features.{position(m)}"),
            (r"stage(\d+)_conv(\d+)/norm", lambda m: f"features.{position(m) + 1}"),
            (r"fc6|fc7|head", lambda m: f"classifier.{dense[m[0]]}"),
        ),
        first="stage1_conv1/conv",
        flattened={"fc6": model.pooled_size},
    )


def _googlenet(model: GoogLeNet) -> TorchNames:
    branches = {
        "branch1": "branch1",
        "branch2_reduce": "branch2.0",
        "branch2": "branch2.1",
        "branch3_reduce": "branch3.0",
        "branch3": "branch3.1",
        "branch4": "branch4.1",
    }
    leaves, dense = {"conv": "conv", "norm": "bn"}, {"fc": "fc1", "head": "fc2"}
    return TorchNames(
        rules=(
            (r"(conv\d)/(conv|norm)", lambda m: f"{m[1]}.{leaves[m[2]]}"),
            (r"(inception\w\w)/(\w+)/(conv|norm)", lambda m: f"{m[1]}.{branches[m[2]]}.{leaves[m[3]]}"),
            (r"(aux\d)/conv/(conv|norm)", lambda m: f"{m[1]}.conv.{leaves[m[2]]}"),
            (r"(aux\d)/(fc|head)", lambda m: f"{m[1]}.{dense[m[2]]}"),
            (r"head", lambda m: "fc"),
        ),
        first="conv1/conv",
        flattened={r"aux\d/fc": 4},
    )


def _resnet(model: ResNet) -> TorchNames:
    leaves, shortcut = {"conv": "conv", "norm": "bn"}, {"conv": 0, "norm": 1}

    def block(match: re.Match) -> str:
        return f"layer{match[1]}.{int(match[2]) - 1}"

    return TorchNames(
        rules=(
            (r"stem/(conv|norm)", lambda m: f"{leaves[m[1]]}1"),
            (r"stage(\d)_block(\d+)/conv(\d)/(conv|norm)", lambda m: f"{block(m)}.{leaves[m[4]]}{m[3]}"),
            (r"stage(\d)_block(\d+)/shortcut/(conv|norm)", lambda m: f"{block(m)}.downsample.{shortcut[m[3]]}"),
            (r"head", lambda m: "fc"),
        ),
        first="stem/conv",
    )


def _densenet(model: DenseNet) -> TorchNames:
    numbers = {"bottleneck": 1, "layer": 2}
    return TorchNames(
        rules=(
            (r"stem/(conv|norm)", lambda m: f"features.{m[1]}0"),
            (
                r"block(\d)_layer(\d+)/(bottleneck|layer)/(?:conv/)?(conv|norm)",
                lambda m: f"features.denseblock{m[1]}.denselayer{m[2]}.{m[4]}{numbers[m[3]]}",
            ),
            (r"(transition\d)/(?:conv/)?(conv|norm)", lambda m: f"features.{m[1]}.{m[2]}"),
            (r"norm", lambda m: "features.norm5"),
            (r"head", lambda m: "classifier"),
        ),
        first="stem/conv",
    )


def _regnet(model: AnyNet) -> TorchNames:
    leaves, letters, squeeze = {"conv": 0, "norm": 1}, {"1": "a", "2": "b", "3": "c"}, {"reduce": 1, "expand": 2}

    def block(match: re.Match) -> str:
        return f"trunk_output.block{match[1]}.block{match[1]}-{int(match[2]) - 1}"

    return TorchNames(
        rules=(
            (r"stem/(conv|norm)", lambda m: f"stem.{leaves[m[1]]}"),
            (
                r"stage(\d)_block(\d+)/conv(\d)/(conv|norm)",
                lambda m: f"{block(m)}.f.{letters[m[3]]}.{leaves[m[4]]}",
            ),
            (r"stage(\d)_block(\d+)/se/(reduce|expand)/conv", lambda m: f"{block(m)}.f.se.fc{squeeze[m[3]]}"),
            (r"stage(\d)_block(\d+)/shortcut/(conv|norm)", lambda m: f"{block(m)}.proj.{leaves[m[3]]}"),
            (r"head", lambda m: "fc"),
        ),
        first="stem/conv",
    )


_FAMILIES: dict[type[Network], Callable[..., TorchNames]] = {
    AlexNet: _alexnet,
    VGG: _vgg,
    GoogLeNet: _googlenet,
    ResNet: _resnet,
    DenseNet: _densenet,
    AnyNet: _regnet,
}


def torch_names(model: Network) -> TorchNames:
    """Returns the mapping from layer paths of a network to layer names in torchvision."""
    return _FAMILIES[type(model)](model)
