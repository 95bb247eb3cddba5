"""The protocol of sources, which read the encoded images and labels of a split."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from flaxcnn.data.decoding.errors import BadImage

# (content of an image file or the reason why it cannot be read, label)
Encoded = tuple[bytes | BadImage, int]


class Source(Protocol):
    """A split of encoded images, each with a label.

    A source can be pickled and sent to another process. The copy only supports `read`, because it lacks the list of
    files. So `items` must be called in the process that opened the source.

    Attributes:
      name: name of the dataset.
      split: split of the dataset, as the user wrote it.
      class_names: names of the classes in the order of the labels.
      image_shape: (height, width, channels); height and width are None if the images differ in size.
      notes: lines for the user about what was found and what was left out; empty for a TFDS dataset.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def split(self) -> str: ...  # noqa: D102

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]: ...  # noqa: D102

    @property
    def notes(self) -> tuple[str, ...]: ...  # noqa: D102

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def items(self, indices: Sequence[int]) -> list[Any]:
        """Returns one item per index: the data that `read` needs to find the image."""
        ...

    def read(self, items: Sequence[Any]) -> list[Encoded]:
        """Returns (encoded image, label) for each item, with a `BadImage` for an image that cannot be read.

        Raises:
          UserError: the dataset is damaged.
        """
        ...

    @property
    def fingerprint(self) -> str:
        """Returns a short text that identifies the split, and changes if images are added or removed."""
        ...

    def describe(self, index: int) -> str:
        """Returns a name for the image at an index, for messages."""
        ...


def digest(content: bytes) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()[:16]
