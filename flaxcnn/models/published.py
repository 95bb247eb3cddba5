"""Names and accuracies of the weights that torchvision publishes, and the names of the ImageNet classes.

This module downloads nothing. File names and accuracies are those of torchvision 0.14.
"""

import dataclasses
import functools
from pathlib import Path

BASE_URL = "https://download.pytorch.org/models/"

# Mean and standard deviation of the red, green and blue channels of ImageNet, for pixels in [0, 1]. All published
# weights expect images that are normalized by these values.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A published weight file, and how its accuracy was measured.

    Attributes:
      tag: torchvision's name of the weights, such as "IMAGENET1K_V1". Weights with SWAG in their tag are licensed
        under CC-BY-NC 4.0.
      file: file name under `BASE_URL`; the eight hex digits after the last dash are the first of the file's
        SHA-256.
      top1: top-1 accuracy on the ImageNet validation set, one central crop, in percent.
      top5: top-5 accuracy on the ImageNet validation set, one central crop, in percent.
      resize: length to which the image's shorter side is resized for evaluation, in pixels.
      crop: side of the square that is then cropped from the center, in pixels.
      interpolation: "bilinear" or "bicubic".
    """

    tag: str
    file: str
    top1: float
    top5: float
    resize: int
    crop: int
    interpolation: str

    @property
    def url(self) -> str:
        """URL of the file."""
        return BASE_URL + self.file


# fmt: off
_TABLE = (
    # network            IMAGENET1K_...    file without .pth                   top-1   top-5   resize, crop
    ("alexnet",          "V1",             "alexnet-owt-7be5be79",            56.522, 79.066, 256, 224, "bilinear"),
    ("vgg11",            "V1",             "vgg11-8a719046",                  69.020, 88.628, 256, 224, "bilinear"),
    ("vgg13",            "V1",             "vgg13-19584684",                  69.928, 89.246, 256, 224, "bilinear"),
    ("vgg16",            "V1",             "vgg16-397923af",                  71.592, 90.382, 256, 224, "bilinear"),
    ("vgg19",            "V1",             "vgg19-dcbb9e9d",                  72.376, 90.876, 256, 224, "bilinear"),
    ("vgg11_bn",         "V1",             "vgg11_bn-6002323d",               70.370, 89.810, 256, 224, "bilinear"),
    ("vgg13_bn",         "V1",             "vgg13_bn-abd245e5",               71.586, 90.374, 256, 224, "bilinear"),
    ("vgg16_bn",         "V1",             "vgg16_bn-6c64b313",               73.360, 91.516, 256, 224, "bilinear"),
    ("vgg19_bn",         "V1",             "vgg19_bn-c79401a0",               74.218, 91.842, 256, 224, "bilinear"),
    ("googlenet",        "V1",             "googlenet-1378be20",              69.778, 89.530, 256, 224, "bilinear"),
    ("resnet18",         "V1",             "resnet18-f37072fd",               69.758, 89.078, 256, 224, "bilinear"),
    ("resnet34",         "V1",             "resnet34-b627a593",               73.314, 91.420, 256, 224, "bilinear"),
    ("resnet50",         "V1",             "resnet50-0676ba61",               76.130, 92.862, 256, 224, "bilinear"),
    ("resnet50",         "V2",             "resnet50-11ad3fa6",               80.858, 95.434, 232, 224, "bilinear"),
    ("resnet101",        "V1",             "resnet101-63fe2227",              77.374, 93.546, 256, 224, "bilinear"),
    ("resnet101",        "V2",             "resnet101-cd907fc2",              81.886, 95.780, 232, 224, "bilinear"),
    ("resnet152",        "V1",             "resnet152-394f9c45",              78.312, 94.046, 256, 224, "bilinear"),
    ("resnet152",        "V2",             "resnet152-f82ba261",              82.284, 96.002, 232, 224, "bilinear"),
    ("resnext50_32x4d",  "V1",             "resnext50_32x4d-7cdf4587",        77.618, 93.698, 256, 224, "bilinear"),
    ("resnext50_32x4d",  "V2",             "resnext50_32x4d-1a0047aa",        81.198, 95.340, 232, 224, "bilinear"),
    ("resnext101_32x8d", "V1",             "resnext101_32x8d-8ba56ff5",       79.312, 94.526, 256, 224, "bilinear"),
    ("resnext101_32x8d", "V2",             "resnext101_32x8d-110c445d",       82.834, 96.228, 232, 224, "bilinear"),
    ("resnext101_64x4d", "V1",             "resnext101_64x4d-173b62eb",       83.246, 96.454, 232, 224, "bilinear"),
    ("wide_resnet50_2",  "V1",             "wide_resnet50_2-95faca4d",        78.468, 94.086, 256, 224, "bilinear"),
    ("wide_resnet50_2",  "V2",             "wide_resnet50_2-9ba9bcbe",        81.602, 95.758, 232, 224, "bilinear"),
    ("wide_resnet101_2", "V1",             "wide_resnet101_2-32ee1156",       78.848, 94.284, 256, 224, "bilinear"),
    ("wide_resnet101_2", "V2",             "wide_resnet101_2-d733dc28",       82.510, 96.020, 232, 224, "bilinear"),
    ("densenet121",      "V1",             "densenet121-a639ec97",            74.434, 91.972, 256, 224, "bilinear"),
    ("densenet161",      "V1",             "densenet161-8d451a50",            77.138, 93.560, 256, 224, "bilinear"),
    ("densenet169",      "V1",             "densenet169-b2777c0a",            75.600, 92.806, 256, 224, "bilinear"),
    ("densenet201",      "V1",             "densenet201-c1103571",            76.896, 93.370, 256, 224, "bilinear"),
    ("regnet_x_400mf",   "V1",             "regnet_x_400mf-adf1edd5",         72.834, 90.950, 256, 224, "bilinear"),
    ("regnet_x_400mf",   "V2",             "regnet_x_400mf-62229a5f",         74.864, 92.322, 232, 224, "bilinear"),
    ("regnet_x_800mf",   "V1",             "regnet_x_800mf-ad17e45c",         75.212, 92.348, 256, 224, "bilinear"),
    ("regnet_x_800mf",   "V2",             "regnet_x_800mf-94a99ebd",         77.522, 93.826, 232, 224, "bilinear"),
    ("regnet_x_1_6gf",   "V1",             "regnet_x_1_6gf-e3633e7f",         77.040, 93.440, 256, 224, "bilinear"),
    ("regnet_x_1_6gf",   "V2",             "regnet_x_1_6gf-a12f2b72",         79.668, 94.922, 232, 224, "bilinear"),
    ("regnet_x_3_2gf",   "V1",             "regnet_x_3_2gf-f342aeae",         78.364, 93.992, 256, 224, "bilinear"),
    ("regnet_x_3_2gf",   "V2",             "regnet_x_3_2gf-7071aa85",         81.196, 95.430, 232, 224, "bilinear"),
    ("regnet_x_8gf",     "V1",             "regnet_x_8gf-03ceed89",           79.344, 94.686, 256, 224, "bilinear"),
    ("regnet_x_8gf",     "V2",             "regnet_x_8gf-2b70d774",           81.682, 95.678, 232, 224, "bilinear"),
    ("regnet_x_16gf",    "V1",             "regnet_x_16gf-2007eb11",          80.058, 94.944, 256, 224, "bilinear"),
    ("regnet_x_16gf",    "V2",             "regnet_x_16gf-ba3796d7",          82.716, 96.196, 232, 224, "bilinear"),
    ("regnet_x_32gf",    "V1",             "regnet_x_32gf-9d47f8d0",          80.622, 95.248, 256, 224, "bilinear"),
    ("regnet_x_32gf",    "V2",             "regnet_x_32gf-6eb8fdc6",          83.014, 96.288, 232, 224, "bilinear"),
    ("regnet_y_400mf",   "V1",             "regnet_y_400mf-c65dace8",         74.046, 91.716, 256, 224, "bilinear"),
    ("regnet_y_400mf",   "V2",             "regnet_y_400mf-e6988f5f",         75.804, 92.742, 232, 224, "bilinear"),
    ("regnet_y_800mf",   "V1",             "regnet_y_800mf-1b27b58c",         76.420, 93.136, 256, 224, "bilinear"),
    ("regnet_y_800mf",   "V2",             "regnet_y_800mf-58fc7688",         78.828, 94.502, 232, 224, "bilinear"),
    ("regnet_y_1_6gf",   "V1",             "regnet_y_1_6gf-b11a554e",         77.950, 93.966, 256, 224, "bilinear"),
    ("regnet_y_1_6gf",   "V2",             "regnet_y_1_6gf-0d7bc02a",         80.876, 95.444, 232, 224, "bilinear"),
    ("regnet_y_3_2gf",   "V1",             "regnet_y_3_2gf-b5a9779c",         78.948, 94.576, 256, 224, "bilinear"),
    ("regnet_y_3_2gf",   "V2",             "regnet_y_3_2gf-9180c971",         81.982, 95.972, 232, 224, "bilinear"),
    ("regnet_y_8gf",     "V1",             "regnet_y_8gf-d0d0e4a8",           80.032, 95.048, 256, 224, "bilinear"),
    ("regnet_y_8gf",     "V2",             "regnet_y_8gf-dc2b1b54",           82.828, 96.330, 232, 224, "bilinear"),
    ("regnet_y_16gf",    "V1",             "regnet_y_16gf-9e6ed7dd",          80.424, 95.240, 256, 224, "bilinear"),
    ("regnet_y_16gf",    "V2",             "regnet_y_16gf-3e4a00f9",          82.886, 96.328, 232, 224, "bilinear"),
    ("regnet_y_16gf",    "SWAG_E2E_V1",    "regnet_y_16gf_swag-43afe44d",     86.012, 98.054, 384, 384, "bicubic"),
    ("regnet_y_16gf",    "SWAG_LINEAR_V1", "regnet_y_16gf_lc_swag-f3ec0043",  83.976, 97.244, 224, 224, "bicubic"),
    ("regnet_y_32gf",    "V1",             "regnet_y_32gf-4dee3f7a",          80.878, 95.340, 256, 224, "bilinear"),
    ("regnet_y_32gf",    "V2",             "regnet_y_32gf-8db6d4b5",          83.368, 96.498, 232, 224, "bilinear"),
    ("regnet_y_32gf",    "SWAG_E2E_V1",    "regnet_y_32gf_swag-04fdfa75",     86.838, 98.362, 384, 384, "bicubic"),
    ("regnet_y_32gf",    "SWAG_LINEAR_V1", "regnet_y_32gf_lc_swag-e1583746",  84.622, 97.480, 224, 224, "bicubic"),
    ("regnet_y_128gf",   "SWAG_E2E_V1",    "regnet_y_128gf_swag-c8ce3e52",    88.228, 98.682, 384, 384, "bicubic"),
    ("regnet_y_128gf",   "SWAG_LINEAR_V1", "regnet_y_128gf_lc_swag-cbe8ce12", 86.068, 97.844, 224, 224, "bicubic"),
)
# fmt: on


def _by_network() -> dict[str, tuple[Weights, ...]]:
    published: dict[str, tuple[Weights, ...]] = {}
    for name, tag, file, top1, top5, resize, crop, interpolation in _TABLE:
        weights = Weights(f"IMAGENET1K_{tag}", f"{file}.pth", top1, top5, resize, crop, interpolation)
        published[name] = (*published.get(name, ()), weights)
    return published


# The published weights by network, in order of publication: V1 first.
PUBLISHED = _by_network()


def default_weights(name: str) -> Weights:
    """Returns torchvision's default weights of a network: the newest IMAGENET1K_V*, or otherwise the first SWAG.

    Raises:
      KeyError: no weights are published for the network.
    """
    plain = [weights for weights in PUBLISHED[name] if "SWAG" not in weights.tag]
    return plain[-1] if plain else PUBLISHED[name][0]


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Returns the names of ImageNet's 1000 classes, in the order of the logits."""
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="ascii").splitlines())
