"""Scaling one encoded image down to a JPEG."""

import cv2
import numpy as np
from PIL import Image

from flaxcnn.data.decoding import images
from flaxcnn.data.decoding.errors import BadImage

# For scikit-learn's two photographs at 384x256, qualities of 85, 95 and 100 take 20, 37 and 76 kB, with a peak
# signal-to-noise ratio of 34.5, 37.7 and 39.3 dB. Above 95 the error hardly falls, because chroma has half the
# resolution, but the size doubles.
JPEG_QUALITY = 95
_JPEG_MAX_SIDE = 65_500  # the limit of libjpeg


def resize_to_jpeg(encoded: bytes, side: int) -> tuple[bytes, bool]:
    """Scales an image down to a shorter side of `side` pixels, and encodes it as JPEG.

    Args:
      encoded: content of the image file.
      side: shorter side in pixels. A smaller image keeps its size.

    Returns:
      (color JPEG, whether the image was scaled down).

    Raises:
      BadImage: the image cannot be decoded, see `images.decode`; or it is longer than a JPEG may be.
    """
    image = images.decode(encoded, 3)
    height, width = scaled_size(*image.shape[:2], side)
    larger = (height, width) != image.shape[:2]
    if larger:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if max(height, width) > _JPEG_MAX_SIDE:
        raise BadImage(f"{width}x{height} pixels, and a JPEG has {_JPEG_MAX_SIDE:,} at most on a side")
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes(), larger


def scaled_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns (height, width) of an image after scaling it down to a shorter side of at most `side` pixels."""
    shorter = min(height, width)
    return (height, width) if shorter <= side else (int(side * height / shorter), int(side * width / shorter))
