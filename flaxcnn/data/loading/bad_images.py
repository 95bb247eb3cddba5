"""Handling of images that cannot be read: the first one stops the run, or all are left out and counted."""

import sys

from flaxcnn.data.sources.protocol import Source
from flaxcnn.errors import UserError

# Maximum number of unreadable images of a split whose names are printed; further ones are only counted.
MAX_NAMED = 20


class BadImages:
    """Records the images of a split that cannot be read.

    Attributes:
      reasons: {index of an image that cannot be read: reason}.
    """

    def __init__(self, source: Source, *, skip: bool):
        self.reasons: dict[int, str] = {}
        self._source, self._skip = source, skip

    def __call__(self, index: int, reason: str) -> None:
        """Records an image that cannot be read.

        Args:
          index: index of the image in the split.
          reason: why it cannot be read.

        Raises:
          UserError: images must not be skipped.
        """
        what = f"{self._source.describe(index)}: {reason}"
        if not self._skip:
            raise UserError(f"{what}; --config.data.bad_images=skip (evaluate: --bad-images skip) leaves it out")
        if index in self.reasons:
            return
        self.reasons[index] = reason
        if len(self.reasons) <= MAX_NAMED:
            print(f"left out: {what}", file=sys.stderr)
        elif len(self.reasons) == MAX_NAMED + 1:
            print(f"left out: more of {self._source.name}, which are counted only", file=sys.stderr)
