"""Encoded pictures to pictures of one size: random boxes for training, the centre for evaluation.

For data workers: NumPy, OpenCV and PIL alone. What is random is a pure function of (seed, epoch, example).
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.random.bit_generator import ISeedSequence
from PIL import Image

from flaxcnn.data.pictures import decode, read_header

Box = tuple[int, int, int, int]  # top, left, height, width in pixels of the full-size, upright picture

ATTEMPTS = 10
RESIZED_BOX_UNIFORMS = 2 * ATTEMPTS + 2
BOX_UNIFORMS = 3


class _Key(ISeedSequence):
    """Hands Philox its key; `Philox(key=...)` asks the system for entropy before, unused, at thrice the price."""

    def __init__(self, key: np.ndarray):
        self.key = key

    def generate_state(self, n_words, dtype=np.uint32):
        return self.key


def uniforms(seed: int, epoch: int, example: int, count: int) -> np.ndarray:
    """Returns `count` random numbers in [0, 1) of an example in an epoch, (count,) float64.

    They are the upper 53 bits of the raw output of the Philox generator keyed by (seed, epoch), which NumPy
    guarantees for all time. Its counter starts at (0, 0, example, 1), and that of `sampler.epoch_order` at 0.
    """
    key = np.array([seed, epoch], np.uint64)
    generator = np.random.Philox(_Key(key), counter=np.array([0, 0, example, 1], np.uint64))
    return (generator.random_raw(count) >> np.uint64(11)) * 2.0**-53


def random_resized_box(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float], uniforms: np.ndarray
) -> Box:
    """Chooses a box of random area, aspect ratio and place, as torchvision's RandomResizedCrop does.

    The area is uniform, the logarithm of the ratio too. A box that does not fit is drawn again, ten times in all;
    then it is the central one, as large as it can be with a permitted ratio. Szegedy et al., "Going Deeper with
    Convolutions", 2014, section 6, with area (0.08, 1) and ratio (3/4, 4/3).

    Args:
      height: of the picture.
      width: of the picture.
      area: least and greatest share of the picture.
      ratio: least and greatest width / height.
      uniforms: `RESIZED_BOX_UNIFORMS` numbers in [0, 1): area and ratio of each attempt, then the place.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        pixels = height * width * (area[0] + (area[1] - area[0]) * uniforms[2 * attempt])
        aspect = math.exp(log_low + (log_high - log_low) * uniforms[2 * attempt + 1])
        box_height, box_width = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            return _place(height, width, box_height, box_width, uniforms[-2:])
    box_height = min(height, max(1, round(width / ratio[0])))
    box_width = min(width, max(1, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_box(height: int, width: int, size: int, shorter_side: tuple[int, int], uniforms: np.ndarray) -> Box:
    """Chooses what a random `size` x `size` window shows of the picture scaled to a random shorter side.

    Krizhevsky et al., 2012, section 4.1, scales to 256; Simonyan and Zisserman, 2014, section 3.1, to [256, 512];
    He et al., 2015, section 3.4, to [256, 480]. Here the window is a square of whole pixels of the picture as
    stored, and only that is scaled, in a fraction of the time; its side is off by at most half such a pixel.

    Args:
      height: of the picture.
      width: of the picture.
      size: of the window, not above `shorter_side`.
      shorter_side: least and greatest, whole numbers all equally likely.
      uniforms: `BOX_UNIFORMS` numbers in [0, 1): the shorter side, then the place.
    """
    low, high = shorter_side
    if size > low:
        raise ValueError(f"a window of {size} pixels does not fit a shorter side of {low}")
    scaled = low + int((high - low + 1) * uniforms[0])
    side = max(1, round(min(height, width) * size / scaled))
    return _place(height, width, side, side, uniforms[1:])


def train_picture(
    encoded: bytes, channels: int, size: int | None = None, choose: Callable[[int, int], Box] | None = None
) -> np.ndarray:
    """Decodes a picture, cuts out a box, and scales it to (size, size, channels) uint8, C-contiguous.

    A large box is decoded at reduced size, as long as that leaves it at least `size` pixels high and wide; its
    edges then move to the nearest pixels of the reduced picture.

    Args:
      encoded: the file.
      channels: 1 for grey, 3 for RGB.
      size: of the result; None gives the picture as stored.
      choose: from (height, width) to the box, such as `random_resized_box` with the rest filled in.

    Raises:
      BadPicture: see `pictures.decode`.
    """
    if size is None:
        return decode(encoded, channels)
    header = read_header(encoded)
    top, left, height, width = choose(header.height, header.width)
    reduce = 1
    while reduce < 8 and min(height, width) >= 2 * reduce * size:
        reduce *= 2
    picture = decode(encoded, channels, reduce, header)
    top, bottom, left, right = ((edge + reduce // 2) // reduce for edge in (top, top + height, left, left + width))
    return _resize(picture[top:bottom, left:right], size)


def test_picture(encoded: bytes, channels: int, shorter_side: int | None = None) -> np.ndarray:
    """Decodes a picture, scales its shorter side, and cuts out the centre, (shorter_side, shorter_side, channels).

    The pixels are those of torchvision's Resize and CenterCrop, by which published accuracies are measured: PIL's
    antialiased bilinear filter on the picture in full, never on one decoded at reduced size. What differs is that
    EXIF's rotation is done, and that of a picture more than 8 times as long as wide only the middle is scaled, lest
    the whole fill the memory. A smaller centre of the result is CenterCrop's too if it is less by a multiple of 4,
    as 224 of 256 is.

    Args:
      encoded: the file.
      channels: 1 for grey, 3 for RGB.
      shorter_side: of the scaled picture; None gives the picture as stored.

    Raises:
      BadPicture: see `pictures.decode`.
    """
    picture = decode(encoded, channels)
    if shorter_side is None:
        return picture
    picture = _shorten(picture)
    height, width = picture.shape[:2]
    shorter = min(height, width)
    new_height, new_width = int(shorter_side * height / shorter), int(shorter_side * width / shorter)
    top, left = round((new_height - shorter_side) / 2), round((new_width - shorter_side) / 2)
    image = Image.fromarray(picture if channels == 3 else picture[..., 0])
    image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    image = image.crop((left, top, left + shorter_side, top + shorter_side))
    return np.array(image).reshape(shorter_side, shorter_side, channels)


def _place(height: int, width: int, box_height: int, box_width: int, uniforms: np.ndarray) -> Box:
    top = int((height - box_height + 1) * uniforms[0])
    left = int((width - box_width + 1) * uniforms[1])
    return top, left, box_height, box_width


def _shorten(picture: np.ndarray) -> np.ndarray:
    """Cuts a picture (H, W, C) down to 8 times as long as wide, or a pixel more, so that its middle stays."""
    height, width = picture.shape[:2]
    longest = 8 * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return picture[top : height - top, left : width - left]


def _resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Scales (H, W, C) to (size, size, C): bilinear, and antialiased where it shrinks.

    Shrinking takes the mean of 2 x 2 bilinear samples a pixel: down to half the size that is as close to PIL's
    antialiased bilinear filter as OpenCV's INTER_AREA, down to a third nearly, in half the time or less. Beyond,
    the samples would lie too far apart, and it is INTER_AREA; down to 1 / 1.1 a single sample is closer.
    """
    height, width, channels = picture.shape
    shrinking = max(height, width) / size
    if shrinking > 3:
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    elif shrinking > 1.1:
        picture = cv2.resize(picture, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    else:
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)
    return picture.reshape(size, size, channels)
