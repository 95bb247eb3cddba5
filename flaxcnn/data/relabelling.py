"""A split of one data set under the class names of another, such as that which a network was trained on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flaxcnn.data.sources import Encoded, Source
from flaxcnn.errors import UserError, nearest

_NAMED = 5  # classes in a message


@dataclasses.dataclass(frozen=True)
class RelabelledSource:
    """A split with other labels; see `Source`.

    Attributes:
      source: the split as it is.
      class_names: in the order of the new labels.
      labels: the new label of each old one.
    """

    source: Source
    class_names: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.source.name

    @property
    def split(self) -> str:
        """Of the data set."""
        return self.source.split

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """As the images are stored."""
        return self.source.image_shape

    def __len__(self) -> int:
        return len(self.source)

    def items(self, indices: Sequence[int]) -> list[Any]:
        """Returns what `read` needs to find the images with those numbers."""
        return self.source.items(indices)

    def read(self, items: Sequence[Any]) -> list[Encoded]:
        """Returns (encoded image, new label) for each item."""
        return [(encoded, self.labels[label]) for encoded, label in self.source.read(items)]

    @property
    def fingerprint(self) -> str:
        """Of the split as it is."""
        return self.source.fingerprint

    def describe(self, index: int) -> str:
        """Returns what a person would call the image with that number."""
        return self.source.describe(index)


def relabel(source: Source, class_names: Sequence[str]) -> Source:
    """Returns a split with the labels that its classes have among `class_names`, which may hold more.

    Raises:
      UserError: it has a class that is not among them.
    """
    if unknown := [name for name in source.class_names if name not in class_names]:
        raise UserError(
            f"{source.name} has classes that the network does not know: {_few(unknown)}"
            f"{nearest(unknown[0], class_names) or '; it knows ' + _few(class_names)}"
        )
    if source.class_names == tuple(class_names):
        return source
    labels = {name: label for label, name in enumerate(class_names)}
    return RelabelledSource(source, tuple(class_names), tuple(labels[name] for name in source.class_names))


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more
