"""Real images: pieces of the two photographs that scikit-learn brings along, in folders and as arrays."""

import dataclasses
import functools

import cv2
import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

PHOTOGRAPHS = {"temple": "china.jpg", "flower": "flower.jpg"}


@functools.cache
def photograph(kind):
    """A photograph, (427, 640, 3) uint8 RGB; the third kind is the first one upside down."""
    if kind == "upside_down":
        return photograph("temple")[::-1]
    return load_sample_image(PHOTOGRAPHS[kind])


def piece(kind, number, height, width):
    """A piece of a photograph at a place that depends on the number."""
    whole = photograph(kind)
    rng = np.random.default_rng([number, sum(map(ord, kind))])
    top, left = rng.integers(0, whole.shape[0] - height + 1), rng.integers(0, whole.shape[1] - width + 1)
    return whole[top : top + height, left : left + width]


def jpeg(image):
    """The image (H, W, 3) RGB as a JPEG."""
    return cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()


def read_as_told(path, image_shape, told):
    """Reads an image file with Pillow and NumPy, as `preprocessing` in the `.json` of a program says."""
    image = ImageOps.exif_transpose(Image.open(path)).convert(told["pillow_mode"])
    shorter, side = min(image.size), told["resize_shorter_side"]
    size = [int(side * length / shorter) for length in image.size]
    image = image.resize(size, Image.Resampling[told["interpolation"].upper()])
    for height, width in told["center_crops"]:
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image).reshape(1, *image_shape)
    if told["value_range"] == [0, 1]:
        pixels = pixels / 255
    if told["mean"] is not None:
        pixels = (pixels - told["mean"]) / told["std"]
    assert told["layout"] == "NHWC"
    return pixels.astype(told["dtype"])


def write_folder(path, count, kinds=("temple", "flower", "upside_down"), height=60, width=80):
    """Writes `count` images of each kind, of different sizes, as PATH/KIND/NUMBER.jpg."""
    for kind in kinds:
        (path / kind).mkdir(parents=True)
        for number in range(count):
            size = height + number % 7, width - number % 5
            (path / kind / f"{number}.jpg").write_bytes(jpeg(piece(kind, number, *size)))
    return path


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A source of arrays, which are encoded when they are read."""

    images: np.ndarray
    labels: np.ndarray
    name: str = "random"
    split: str = "test"
    class_names: tuple[str, ...] = tuple("abcdefghij")
    image_shape: tuple[int, int, int] = (12, 12, 1)
    notes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.labels)

    def items(self, indices):
        return [
            (cv2.imencode(".png", self.images[index])[1].tobytes(), int(self.labels[index])) for index in indices
        ]

    def read(self, items):
        return items

    @property
    def fingerprint(self):
        return "random"

    def describe(self, index):
        return f"image {index}"
