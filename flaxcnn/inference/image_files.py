"""How an image file becomes the input of an exported program, in words and numbers for its `.json`."""

from collections.abc import Sequence
from typing import Any

_PILLOW_MODES = {1: "L", 3: "RGB"}


def describe_preprocessing(
    image_shape: tuple[int, int, int],
    dtype: str = "uint8",
    *,
    shorter_side: int | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Returns the steps from an image file to a program's input, in the order in which they are done.

    Args:
      image_shape: (height, width, channels) of the input.
      dtype: of the input; "uint8" has the values 0 to 255. A floating input is scaled to 0 to 1, and then
        normalised by `mean` and `std`, if these are known.
      shorter_side: pixels that the image's shorter side is scaled to; None takes the longer side of the input.
      interpolation: "bilinear" or "bicubic", antialiased as Pillow does it.
      mean: subtracted from 0..1, one value or one a channel.
      std: divides after that, one value or one a channel.
    """
    height, width, channels = image_shape
    side = shorter_side or max(height, width)
    # Images that are not square are cut out of a square, as in prediction; published weights cut once.
    crops = [[height, width]] if shorter_side or height == width else [[side, side], [height, width]]
    floating = dtype != "uint8"
    return {
        "pillow_mode": _PILLOW_MODES.get(channels),
        "orientation": "upright, as EXIF says",
        "resize_shorter_side": side,
        "resize_longer_side": "int(resize_shorter_side * longer / shorter)",
        "interpolation": interpolation,
        "antialias": True,
        "center_crops": crops,
        "center_crop_offset": "round((size - crop) / 2), a half to the even number",
        "value_range": [0, 1] if floating else [0, 255],
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "dtype": dtype,
        "layout": "NHWC",
    }
