"""A split with the labels of another dataset, such as the one that a network was trained on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flaxcnn.data.sources.protocol import Encoded, Source
from flaxcnn.errors import UserError, nearest

_MAX_NAMED = 5  # maximum number of classes that a message names


@dataclasses.dataclass(frozen=True)
class RelabelledSource:
    """A split whose labels are replaced; see `Source`.

    Attributes:
      source: the split with its original labels.
      class_names: names of the classes in the order of the new labels.
      labels: the new label for each original label.
    """

    source: Source
    class_names: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.source.name

    @property
    def split(self) -> str:
        """Split of the dataset."""
        return self.source.split

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """Shape of the stored images; see `Source`."""
        return self.source.image_shape

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user; see `Source`."""
        return self.source.notes

    def __len__(self) -> int:
        return len(self.source)

    def items(self, indices: Sequence[int]) -> list[Any]:
        """Returns one item per index: the data that `read` needs to find the image."""
        return self.source.items(indices)

    def read(self, items: Sequence[Any]) -> list[Encoded]:
        """Returns (encoded image, new label) for each item."""
        return [(encoded, self.labels[label]) for encoded, label in self.source.read(items)]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the split, which does not depend on its labels."""
        return self.source.fingerprint

    def describe(self, index: int) -> str:
        """Returns a name for the image at an index, for messages."""
        return self.source.describe(index)


def relabel(source: Source, class_names: Sequence[str]) -> Source:
    """Returns a split whose labels are the positions of its classes in `class_names`.

    Raises:
      UserError: the split has a class that is not in `class_names`.
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
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(repr, names[:_MAX_NAMED])) + more
