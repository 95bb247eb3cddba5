"""Decoding and cropping the images of a split to arrays of one shape: the part of preprocessing on the host.

Worker processes import this module, so it imports nothing that is slow to import.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxcnn.data.decoding import crops, images, messages
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.sources.protocol import Source

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A split whose images are decoded to one shape. Each array is a pure function of (seed, epoch, index).

    Attributes:
      source: source of the encoded images.
      image_shape: (height, width, channels) of every array.
      crop: "stored" for no crop, if all stored images have `image_shape`; "center", "random" or "random_resized".
      seed: seed of the random crops.
      crop_area: for "random_resized", the smallest and the largest fraction of the image's area.
      crop_ratio: for "random_resized", the smallest and the largest ratio of width to height.
      shorter_side: for "random", the range in pixels to which the shorter side is scaled before the crop.
    """

    source: Source
    image_shape: tuple[int, int, int]
    crop: str = "stored"
    seed: int = 0
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shorter_side: tuple[int, int] = (256, 256)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def decoded_bytes(self) -> int:
        """Size of all decoded images together, in bytes."""
        return math.prod((len(self), *self.image_shape))

    def decode(self, encoded: bytes, epoch: int, index: int) -> Array:
        """Decodes one image to a uint8 array of `image_shape`.

        Args:
          encoded: content of the image file.
          epoch: epoch, counted from 0.
          index: index of the image in the split.

        Raises:
          BadImage: the image cannot be decoded, or `crop` is "stored" and the image does not have `image_shape`.
        """
        height, width, channels = self.image_shape
        if self.crop == "stored":
            image = images.decode(encoded, channels)
            if image.shape != self.image_shape:
                raise BadImage(f"{image.shape[1]}x{image.shape[0]} pixels instead of {width}x{height}")
            return image
        if self.crop == "center":
            square = crops.decode_center_square(encoded, channels, max(height, width))
            top, left = round((len(square) - height) / 2), round((len(square) - width) / 2)
            return square[top : top + height, left : left + width]

        def choose(stored_height: int, stored_width: int) -> crops.Box:
            if self.crop == "random":
                numbers = crops.uniforms(self.seed, epoch, index, crops.BOX_UNIFORMS)
                return crops.random_box(stored_height, stored_width, height, self.shorter_side, numbers)
            numbers = crops.uniforms(self.seed, epoch, index, crops.RESIZED_BOX_UNIFORMS)
            return crops.random_resized_box(stored_height, stored_width, self.crop_area, self.crop_ratio, numbers)

        return crops.decode_crop(encoded, channels, height, choose)

    def decode_into(
        self, rows: Array, epoch: int, indices: Sequence[int], items: Sequence[Any]
    ) -> tuple[list[int], list[tuple[int, str]]]:
        """Decodes images into the first rows of an array. An image that cannot be read becomes black.

        Args:
          rows: (B, *image_shape) uint8, written to.
          epoch: epoch of the batch, counted from 0.
          indices: indices of the images in the split.
          items: result of `Source.items` for these indices.

        Returns:
          (labels, bad), where `bad` has (index, reason) for each image that cannot be read.
        """
        labels, bad = [], []
        read = self.source.read(items)
        with messages.caught():
            for row, (index, (encoded, label)) in enumerate(zip(indices, read, strict=True)):
                labels.append(label)
                try:
                    if isinstance(encoded, BadImage):
                        raise encoded
                    rows[row] = self.decode(encoded, epoch, index)
                except BadImage as reason:
                    rows[row] = 0
                    bad.append((int(index), str(reason)))
        return labels, bad
