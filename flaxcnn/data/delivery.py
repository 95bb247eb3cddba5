"""How the pictures of a split become arrays of one shape: the part of the work that is done on the host.

It runs inside the processes that decode, so it imports nothing that is slow to import.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxcnn.data import crops, pictures, remarks
from flaxcnn.data.pictures import BadPicture
from flaxcnn.data.sources import Source

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Delivery:
    """A split, and what becomes of its pictures; a pure function of (seed, epoch, example).

    Attributes:
      source: of the encoded pictures.
      image_shape: (height, width, channels) of every array.
      crop: "stored" for pictures that have that shape already; "center", "random" or "random_resized".
      seed: of the crops.
      crop_area: of "random_resized", the smallest and largest share of the picture's area.
      crop_ratio: of "random_resized", the smallest and largest width by height.
      shorter_side: of "random", the range of pixels that the picture's shorter side is scaled to.
    """

    source: Source
    image_shape: tuple[int, int, int]
    crop: str = "stored"
    seed: int = 0
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shorter_side: tuple[int, int] = (256, 256)

    def picture(self, encoded: bytes, epoch: int, example: int) -> Array:
        """Returns the array of a picture, `image_shape` uint8.

        Raises:
          BadPicture: it cannot be read, or has not the shape it should have.
        """
        height, width, channels = self.image_shape
        if self.crop == "stored":
            image = pictures.decode(encoded, channels)
            if image.shape != self.image_shape:
                raise BadPicture(f"{image.shape[1]}x{image.shape[0]} pixels instead of {width}x{height}")
            return image
        if self.crop == "center":
            square = crops.test_picture(encoded, channels, max(height, width))
            top, left = round((len(square) - height) / 2), round((len(square) - width) / 2)
            return square[top : top + height, left : left + width]

        def choose(stored_height: int, stored_width: int) -> crops.Box:
            if self.crop == "random":
                numbers = crops.uniforms(self.seed, epoch, example, crops.BOX_UNIFORMS)
                return crops.random_box(stored_height, stored_width, height, self.shorter_side, numbers)
            numbers = crops.uniforms(self.seed, epoch, example, crops.RESIZED_BOX_UNIFORMS)
            return crops.random_resized_box(stored_height, stored_width, self.crop_area, self.crop_ratio, numbers)

        return crops.train_picture(encoded, channels, height, choose)

    def fill(
        self, images: Array, epoch: int, examples: Sequence[int], items: Sequence[Any]
    ) -> tuple[list[int], list[tuple[int, str]]]:
        """Writes pictures into the first rows of `images` (B, *image_shape) uint8; what cannot be read is black.

        Args:
          images: to write to.
          epoch: of the visit.
          examples: their numbers in the split.
          items: what the source finds them by.

        Returns:
          Their labels, and (number of the example, reason) for each that cannot be read.
        """
        labels, bad = [], []
        read = self.source.read(items)
        with remarks.caught():
            for row, (example, (encoded, label)) in enumerate(zip(examples, read, strict=True)):
                labels.append(label)
                try:
                    if isinstance(encoded, BadPicture):
                        raise encoded
                    images[row] = self.picture(encoded, epoch, example)
                except BadPicture as reason:
                    images[row] = 0
                    bad.append((int(example), str(reason)))
        return labels, bad
