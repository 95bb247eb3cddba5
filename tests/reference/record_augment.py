"""Records what torchvision makes of uint8 images, for the tests to compare flaxcnn with; those need no torch.

From the root of the repository, with a Python that has torch:

    /usr/bin/python3 -m tests.reference.record_augment

The recording, augment.npz, was made with torch 1.13 and torchvision 0.14, on tensors. The images are those of
`images`, which the tests make too. Arrays of images are NHWC:

    adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue: of "colour", with each factor in FACTORS,
        (5, 2, 12, 11, 3); grey_adjust_brightness and so on: of "grey", (5, 1, 9, 9, 1)
    rand_augment, trivial_augment: the magnitudes of the policies for images of 16 x 14, (14, 31) float32, in the
        order of OPERATIONS; 0 where an operation has none
    rand_augment_224: the same for images of 224 x 224
    cases: (N, 3) float32, the number of an operation, a magnitude, and the number of a set of images in SETS
    colour, grey, places, odd_places, scene: the outputs of the cases of this set, stacked in order
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference import formula

PATH = Path(__file__).with_name("augment.npz")
FACTORS = {
    "adjust_brightness": (0.0, 0.3, 0.9, 1.0, 1.7),
    "adjust_contrast": (0.0, 0.3, 0.9, 1.0, 1.7),
    "adjust_saturation": (0.0, 0.3, 0.9, 1.0, 1.7),
    "adjust_hue": (-0.5, -0.21, 0.0, 0.05, 0.5),
}
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
GEOMETRIC, SIGNED = OPERATIONS[1:6], OPERATIONS[1:10]
RECORDED_BINS = {"rand_augment": (0, 4, 9, 20, 30), "trivial_augment": (4, 10, 15, 21, 30)}
SETS = ("colour", "grey", "places", "odd_places", "scene")


def images(name: str) -> np.ndarray:
    """Uint8 images, NHWC, that depend on the name alone.

    "colour" is noise over half of the range and over all of it, 2 x 12 x 11 x 3; "grey" is a ramp with noise,
    1 x 9 x 9 x 1. In "places" (1 x 16 x 14 x 1) and "odd_places" (1 x 15 x 13 x 1) each pixel has a value of its
    own, from 1. "scene" (1 x 40 x 24 x 3) has enough pixels for its histogram to matter, each channel another.
    """
    if name == "colour":
        noise = formula.values(name, (2, 12, 11, 3))
        pixels = np.stack([128 + 64 * noise[0] ** 3, 128 + 128 * noise[1]])
    elif name == "grey":
        pixels = np.linspace(20, 180, 81).reshape(1, 9, 9, 1) + 40 * formula.values(name, (1, 9, 9, 1))
    elif name == "scene":
        pixels = 128 + np.array([100, 120, 40]) * formula.values(name, (1, 40, 24, 3)) ** np.array([1, 3, 5])
    else:
        height, width = {"places": (16, 14), "odd_places": (15, 13)}[name]
        pixels = np.arange(1, 1 + height * width).reshape(1, height, width, 1)
    return np.floor(pixels).astype(np.uint8)


def main() -> None:
    # Here, because the tests import this module where there is no torch.
    import torch
    from torchvision.transforms import InterpolationMode, autoaugment, functional

    def each(operation: Callable, images: np.ndarray, *arguments: Any) -> np.ndarray:
        tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        return torch.stack([operation(tensor, *arguments) for tensor in tensors]).permute(0, 2, 3, 1).numpy()

    def apply(tensor: Any, operation: str, magnitude: float) -> Any:
        return autoaugment._apply_op(tensor, operation, magnitude, InterpolationMode.NEAREST, fill=None)

    def magnitudes(space: dict) -> np.ndarray:
        assert tuple(space) == OPERATIONS
        assert tuple(name for name, (_, signed) in space.items() if signed) == SIGNED
        return torch.stack([steps.float().expand(31) for steps, _ in space.values()]).numpy()

    recorded = {}
    for name, factors in FACTORS.items():
        operation = getattr(functional, name)
        for key, inputs in ((name, images("colour")), (f"grey_{name}", images("grey"))):
            recorded[key] = np.stack([each(operation, inputs, factor) for factor in factors])

    rand_augment, trivial_augment = autoaugment.RandAugment(), autoaugment.TrivialAugmentWide()
    recorded["rand_augment"] = magnitudes(rand_augment._augmentation_space(31, (16, 14)))
    recorded["rand_augment_224"] = magnitudes(rand_augment._augmentation_space(31, (224, 224)))
    recorded["trivial_augment"] = magnitudes(trivial_augment._augmentation_space(31))

    cases, outputs = [], {name: [] for name in SETS}
    for number, operation in enumerate(OPERATIONS):
        strengths = [recorded[policy][number, k] for policy, bins in RECORDED_BINS.items() for k in bins]
        signs = (1, -1) if operation in SIGNED else (1,)
        sets = ("places", "odd_places") if operation in GEOMETRIC else ("colour", "grey")
        if operation in ("AutoContrast", "Equalize"):
            sets += ("scene",)
        for name in sets:
            for magnitude in sorted({float(sign * strength) for strength in strengths for sign in signs}):
                cases.append((number, magnitude, SETS.index(name)))
                outputs[name].append(each(apply, images(name), operation, magnitude))
    recorded["cases"] = np.array(cases, np.float32)
    recorded |= {name: np.stack(stack) for name, stack in outputs.items()}
    np.savez_compressed(PATH, **recorded)
    print(f"{len(cases)} cases, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
