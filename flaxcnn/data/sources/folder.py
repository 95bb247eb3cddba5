"""Image files as a source: a folder with a folder for each class, or a list of files."""

import dataclasses
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.sources import folder_contents
from flaxcnn.data.sources.folder_contents import Contents
from flaxcnn.data.sources.folder_hints import missing_split
from flaxcnn.data.sources.folder_scan import Files, images_below
from flaxcnn.data.sources.protocol import Encoded, digest
from flaxcnn.data.sources.split_notation import file_instructions, no_split
from flaxcnn.errors import UserError, nearest
from flaxcnn.paths import local_path
from flaxcnn.terminal import printable

# Prefix of the name of a dataset that is a folder of images.
FOLDER = "folder:"


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A split of a folder of color images; see `Source`, and `folder_scan` for which files count as images.

    A folder without splits gets two: "test" is a fifth of each class, chosen by a hash of the file paths, and
    "train" is the rest.

    Attributes:
      path: path of the folder.
      files: (N,) bytes, paths of the image files relative to the folder.
      labels: (N,) int32, label of each image.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    path: str
    # Bytes, because NumPy takes four bytes for each character of a string.
    files: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()
    image_shape: tuple[int | None, int | None, int] = (None, None, 3)

    @classmethod
    def open(cls, name: str, split: str) -> "FolderSource":
        """Opens a split, or a part of one, of the folder PATH.

        Args:
          name: "folder:PATH".
          split: split in TFDS's notation, such as "train" or "train[:90%]".
        """
        contents = read_contents(name)
        return cls.of(name, split, contents, _chosen_files(contents, split, name))

    @classmethod
    def of(cls, name: str, split: str, contents: Contents, chosen: Files) -> "FolderSource":
        """Creates a source from some of the files that were found in a folder.

        Args:
          name: "folder:PATH".
          split: name of the split.
          contents: contents of the folder.
          chosen: files of the split.
        """
        labels = {class_name: label for label, class_name in enumerate(contents.classes)}
        return cls(
            name=name,
            split=split,
            class_names=_distinct(map(printable, contents.classes)),
            path=str(contents.path),
            files=np.array([os.fsencode(file) for _, file in chosen], bytes),
            labels=np.array([labels[class_name] for class_name, _ in chosen], np.int32),
            notes=contents.notes,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def items(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns (file path, label) for each index."""
        return [(bytes(self.files[index]), int(self.labels[index])) for index in indices]

    def read(self, items: Sequence[tuple[bytes, int]]) -> list[Encoded]:
        """Returns (file content, label) for each item."""
        return [(_content(os.path.join(os.fsencode(self.path), file)), label) for file, label in items]  # noqa: PTH118

    @property
    def fingerprint(self) -> str:
        """Digest of all file paths in order. It does not depend on the content of the files."""
        return digest(b"\0".join(self.files.tolist()))

    def file(self, index: int) -> str:
        """Returns the file path of the image at an index."""
        return os.path.join(self.path, os.fsdecode(bytes(self.files[index])))  # noqa: PTH118

    def describe(self, index: int) -> str:
        """Returns the file path of the image at an index, in printable form."""
        return printable(self.file(index))

    def __getstate__(self) -> dict[str, Any]:
        without_lists = {"files": self.files[:0], "labels": self.labels[:0]}
        return self.__dict__ | without_lists

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


# Errors that concern one file. All other errors concern the machine or the network. They must not count as a bad
# image, which may be skipped.
_FILE_ERRORS = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def _content(path: bytes) -> bytes | BadImage:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib takes no bytes
            return file.read()
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise UserError(
                f"cannot read {os.fsdecode(path)}: {error.strerror}; it may be there again later"
            ) from None
        return BadImage(f"cannot be read: {error.strerror}")


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Makes names distinct by adding numbers. Names of two folders may become equal in printable form."""
    found: dict[str, None] = {}
    for name in names:
        number = 2
        unused = name
        while unused in found:
            unused = f"{name} ({number})"
            number += 1
        found[unused] = None
    return tuple(found)


def read_contents(name: str) -> Contents:
    """Returns the splits and classes of the folder PATH.

    Args:
      name: "folder:PATH".

    Raises:
      UserError: the folder does not exist, cannot be read, or holds fewer than two classes.
    """
    written = name.removeprefix(FOLDER)
    path = local_path(written)
    try:
        if not written:
            raise UserError(f"data set '{printable(name)}' names no folder; write folder:PATH")
        if not path.is_dir():
            where = printable(path.absolute())
            what = f"{where} is a file, not a folder" if path.exists() else f"there is no folder {where}"
            raise UserError(f"data set '{printable(name)}' cannot be read: {what}")
        return folder_contents.scan_folder(name, path)
    except OSError as error:
        where = printable(os.fsdecode(error.filename or path))
        raise UserError(f"cannot look through {printable(path)}: {error.strerror}: {where}") from error


def _chosen_files(contents: Contents, split: str, name: str) -> Files:
    """Returns the files of a split, which is given in TFDS's notation, such as "train[:90%]"."""
    from tensorflow_datasets.core import naming, splits

    found = contents.splits
    if split in found:  # the name of a folder may be invalid in that notation
        return found[split]
    template = naming.ShardedFileTemplate(data_dir=".", dataset_name="folder", filetype_suffix="list")
    chosen = []
    for part in split.split("+"):
        base, bracket, rest = part.strip().partition("[")
        files = [file for each in found.values() for file in each] if base == "all" else found.get(base)
        if files is None:
            raise UserError(f"{no_split(found, base, name)}{missing_split(name, contents.path, base, found)}")
        information = splits.SplitInfo(
            name="part", shard_lengths=[len(files)], num_bytes=0, filename_template=template
        )
        table = splits.SplitDict([information])
        for instruction in file_instructions(table, f"part{bracket}{rest}", part.strip(), name):
            chosen += files[instruction.skip : instruction.skip + instruction.take]
    return chosen


def open_files(paths: Sequence[str | Path]) -> FolderSource:
    """Opens image files, and all images in folders and their subfolders. Every image gets the label -1.

    Args:
      paths: paths of files and folders. The source keeps their order; images of a folder are sorted by path.

    Raises:
      UserError: a path does not exist, or a folder holds no images.
    """
    files: list[str] = []
    for path in map(local_path, paths):
        if path.is_dir():
            try:
                found = [os.path.normpath(path / file) for file in images_below(path)]
            except OSError as error:
                raise UserError(f"cannot look through {path}: {error.strerror}: {error.filename}") from error
            if not found:
                raise UserError(f"folder {path} holds no images")
            files += sorted(found)
        elif path.exists():
            files.append(str(path))
        else:
            siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"cannot read {path}: there is no such file{nearest(path.name, siblings)}")
    encoded = np.array(list(map(os.fsencode, files)), bytes)
    return FolderSource("files", "files", (), path="", files=encoded, labels=np.full(len(files), -1, np.int32))


def is_flat(name: str) -> bool:
    """Returns whether the folder PATH of "folder:PATH" holds class folders instead of splits. It must exist."""
    return folder_contents.is_flat(local_path(name.removeprefix(FOLDER)))
