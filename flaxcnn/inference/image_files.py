"""Description of the steps from an image file to the input of an exported program, for its JSON file."""

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
    """Returns the steps from an image file to the input of a program, in order, as a dict that JSON can store.

    docs/inference.md shows how to apply the steps with Pillow and NumPy.

    Args:
      image_shape: (height, width, channels) of the input.
      dtype: dtype of the input. A "uint8" input has values from 0 to 255. A floating input is scaled to [0, 1] and
        then normalized by `mean` and `std`, if they are given.
      shorter_side: length to which the shorter side of the image is scaled, in pixels; None for the longer side of
        `image_shape`.
      interpolation: "bilinear" or "bicubic", with antialiasing, as in Pillow.
      mean: mean for normalization, of values in [0, 1]; one value, or one per channel.
      std: standard deviation for normalization, of values in [0, 1]; one value, or one per channel.
    """
    height, width, channels = image_shape
    side = shorter_side or max(height, width)
    # As in prediction, an input that is not square is cropped from a square. Published weights are evaluated with
    # one crop.
    crops = [[height, width]] if shorter_side or height == width else [[side, side], [height, width]]
    is_floating = dtype != "uint8"
    return {
        "pillow_mode": _PILLOW_MODES.get(channels),
        "orientation": "upright, as EXIF says",
        "resize_shorter_side": side,
        "resize_longer_side": "int(resize_shorter_side * longer / shorter)",
        "interpolation": interpolation,
        "antialias": True,
        "center_crops": crops,
        "center_crop_offset": "round((size - crop) / 2), a half to the even number",
        "value_range": [0, 1] if is_floating else [0, 255],
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "dtype": dtype,
        "layout": "NHWC",
    }
