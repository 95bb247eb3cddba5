"""Decoding images to one size: random boxes for training, the center for evaluation.

Worker processes import this module, so it imports only NumPy, OpenCV and PIL. Random draws are pure functions of
(seed, epoch, example).
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.random.bit_generator import ISeedSequence
from PIL import Image

from flaxcnn.data.decoding.headers import read_header
from flaxcnn.data.decoding.images import decode

# Top, left, height and width in pixels of the full-size, upright image.
Box = tuple[int, int, int, int]

ATTEMPTS = 10
# Lengths of the argument `uniforms` of `random_resized_box` and `random_box`.
RESIZED_BOX_UNIFORMS = 2 * ATTEMPTS + 2
BOX_UNIFORMS = 3


class _Key(ISeedSequence):
    """Passes a key to Philox. `Philox(key=...)` takes 3x as long, because it first reads entropy of the system."""

    def __init__(self, key: np.ndarray):
        self.key = key

    def generate_state(self, n_words, dtype=np.uint32):
        return self.key


def uniforms(seed: int, epoch: int, example: int, count: int) -> np.ndarray:
    """Returns `count` uniform random numbers in [0, 1) for an example in an epoch, (count,) float64.

    They are the upper 53 bits of the raw output of the Philox generator with key (seed, epoch), which NumPy
    promises never to change. The counter starts at (0, 0, example, 1), and in `sampler.epoch_order` at 0, so the
    two streams do not overlap.
    """
    key = np.array([seed, epoch], np.uint64)
    generator = np.random.Philox(_Key(key), counter=np.array([0, 0, example, 1], np.uint64))
    return (generator.random_raw(count) >> np.uint64(11)) * 2.0**-53


def random_resized_box(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float], uniforms: np.ndarray
) -> Box:
    """Chooses a box of random area, aspect ratio and position, as torchvision's RandomResizedCrop does.

    The area and the logarithm of the ratio are uniform. A box that does not fit into the image is drawn again. If
    ten boxes do not fit, the largest centered box with a permitted ratio is taken. Szegedy et al., "Going Deeper
    with Convolutions", 2014, section 6, with area (0.08, 1) and ratio (3/4, 4/3).

    Args:
      height: height of the image in pixels.
      width: width of the image in pixels.
      area: smallest and largest fraction of the image's area.
      ratio: smallest and largest ratio of width to height.
      uniforms: `RESIZED_BOX_UNIFORMS` numbers in [0, 1): area and ratio of each attempt, then the position.

    Returns:
      (top, left, height, width) in pixels.
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
    """Chooses the box of the stored image for a random crop after scaling to a random shorter side.

    Krizhevsky et al., 2012, section 4.1, scale the shorter side to 256; Simonyan and Zisserman, 2014, section 3.1,
    to [256, 512]; He et al., 2015, section 3.4, to [256, 480]. Deviation: the box is a square of whole pixels of
    the stored image, and only the box is scaled, which takes a fraction of the time. Its side is off by at most
    half a stored pixel.

    Args:
      height: height of the image in pixels.
      width: width of the image in pixels.
      size: height and width of the crop after scaling, at most `shorter_side[0]`.
      shorter_side: smallest and largest shorter side; all integers between them are equally likely.
      uniforms: `BOX_UNIFORMS` numbers in [0, 1): the shorter side, then the position.

    Returns:
      (top, left, height, width) in pixels of the stored image.

    Raises:
      ValueError: the crop does not fit the smallest shorter side.
    """
    low, high = shorter_side
    if size > low:
        raise ValueError(f"a crop of {size} pixels does not fit a shorter side of {low}")
    scaled = low + int((high - low + 1) * uniforms[0])
    side = max(1, round(min(height, width) * size / scaled))
    return _place(height, width, side, side, uniforms[1:])


def decode_crop(
    encoded: bytes, channels: int, size: int | None = None, choose: Callable[[int, int], Box] | None = None
) -> np.ndarray:
    """Decodes an image, crops a box, and scales it.

    If the box is large, the image is decoded at 1/2, 1/4 or 1/8 of its size, as long as the box stays at least
    `size` pixels high and wide. The edges of the box are then rounded to whole pixels of the reduced image.

    Args:
      encoded: content of the image file.
      channels: 1 for gray, 3 for RGB.
      size: height and width of the result in pixels; None returns the whole image at its stored size.
      choose: `choose(height, width) -> box`, which gets the size of the upright image, such as `random_resized_box`
        with its other arguments filled in. Not used if `size` is None.

    Returns:
      (size, size, channels) uint8, C-contiguous.

    Raises:
      BadImage: see `images.decode`.
    """
    if size is None:
        return decode(encoded, channels)
    header = read_header(encoded)
    top, left, height, width = choose(header.height, header.width)
    reduce = 1
    while reduce < 8 and min(height, width) >= 2 * reduce * size:
        reduce *= 2
    image = decode(encoded, channels, reduce, header)
    top, bottom, left, right = ((edge + reduce // 2) // reduce for edge in (top, top + height, left, left + width))
    return _resize(image[top:bottom, left:right], size)


def decode_center_square(encoded: bytes, channels: int, shorter_side: int | None = None) -> np.ndarray:
    """Decodes an image, scales its shorter side, and crops the central square.

    The pixels equal those of torchvision's Resize and CenterCrop, with which published accuracies are measured. The
    image is decoded at full size and scaled with PIL's antialiased bilinear filter. A smaller center of the result
    also equals that of CenterCrop if the two sizes differ by a multiple of 4, as 224 and 256 do. Deviations: images
    are turned upright as their EXIF orientation says, and of an image more than 8 times as long as wide only the
    middle is scaled, because the whole image could fill the memory.

    Args:
      encoded: content of the image file.
      channels: 1 for gray, 3 for RGB.
      shorter_side: shorter side in pixels after scaling; None returns the whole image at its stored size.

    Returns:
      (shorter_side, shorter_side, channels) uint8.

    Raises:
      BadImage: see `images.decode`.
    """
    image = decode(encoded, channels)
    if shorter_side is None:
        return image
    image = _shorten(image)
    height, width = image.shape[:2]
    shorter = min(height, width)
    new_height, new_width = int(shorter_side * height / shorter), int(shorter_side * width / shorter)
    top, left = round((new_height - shorter_side) / 2), round((new_width - shorter_side) / 2)
    scaled = Image.fromarray(image if channels == 3 else image[..., 0])
    scaled = scaled.resize((new_width, new_height), Image.Resampling.BILINEAR)
    scaled = scaled.crop((left, top, left + shorter_side, top + shorter_side))
    return np.array(scaled).reshape(shorter_side, shorter_side, channels)


def _place(height: int, width: int, box_height: int, box_width: int, uniforms: np.ndarray) -> Box:
    top = int((height - box_height + 1) * uniforms[0])
    left = int((width - box_width + 1) * uniforms[1])
    return top, left, box_height, box_width


def _shorten(image: np.ndarray) -> np.ndarray:
    """Crops an image (H, W, C) to its middle, at most 8 times as long as wide, or one pixel longer."""
    height, width = image.shape[:2]
    longest = 8 * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return image[top : height - top, left : width - left]


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Scales an image (H, W, C) to (size, size, C) bilinearly, with antialiasing if it shrinks.

    To shrink, each pixel is the mean of 2 x 2 bilinear samples. Down to half the size, this is as close to PIL's
    antialiased bilinear filter as OpenCV's INTER_AREA is; down to a third, nearly as close. It takes half the time
    or less. Below a third, the samples would lie too far apart, and INTER_AREA is used. Above 1 / 1.1 of the size,
    a single bilinear sample is closer to PIL's filter.
    """
    height, width, channels = image.shape
    shrinking = max(height, width) / size
    if shrinking > 3:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    elif shrinking > 1.1:
        image = cv2.resize(image, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    else:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image.reshape(size, size, channels)
