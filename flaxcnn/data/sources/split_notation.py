"""TFDS's notation for splits, such as "train[:90%]+test", with one-line error messages."""

from collections.abc import Iterable
from typing import Any

from flaxcnn.errors import UserError, nearest
from flaxcnn.terminal import printable


def file_instructions(splits: Any, split: str, written: str, name: str) -> Any:
    """Returns TFDS's file instructions for a split: the files to read, and the range of records in each file.

    Args:
      splits: the splits of a TFDS builder.
      split: a split or a part of a split in TFDS's notation, such as "train[:90%]".
      written: the split as the user wrote it, for the error message.
      name: name of the dataset, for the error message.

    Raises:
      UserError: the split or part does not exist.
    """
    try:
        return splits[split].file_instructions
    except (KeyError, ValueError, NotImplementedError) as error:
        base = split.split("[")[0]
        if base in splits and base != split:
            raise UserError(
                f"data set {name} has no part {written!r}: its split has {splits[base].num_examples:,} images; "
                f"write for example {written.split('[')[0]}[:50%]"
            ) from error
        raise no_split(splits, written, name) from error


def no_split(known: Iterable[str], split: str, name: str) -> UserError:
    """Returns the error for a split that a dataset does not have, with a hint that names existing splits."""
    hint = nearest(split, known) or f"; it has {', '.join(known)}"
    return UserError(printable(f"data set {name} has no split {split!r}{hint}"))
