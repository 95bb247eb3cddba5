"""Scanning a folder for images: the images of each class, and the files that are left out.

A folder of images either holds a folder for each split, with a folder for each class in it: `PATH/train/cat/1.jpg`.
Or it directly holds a folder for each class: `PATH/cat/1.jpg`. Images in subfolders of a class folder belong to
that class. A class folder without images is not a class.
"""

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from flaxcnn.data.decoding.headers import SIGNATURE_BYTES, format_of
from flaxcnn.terminal import printable

# Files with these extensions count as images without being opened. Other files are opened, and count as images if
# their first bytes say so.
_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)

Files = list[tuple[str, str]]  # (class, path of the file relative to the folder)


@dataclasses.dataclass
class Tally:
    """The number of files of one kind, and the path of one of them."""

    number: int
    example: str


class FolderScan:
    """One scan of a folder, which collects images and records what is left out.

    Attributes:
      root: path of the folder.
      left_out: {file extension, or "hidden": tally of the files that are not images}.
      loose: {folder: tally of the images directly in it, outside of class folders}.
      empty: class folders and splits without images.
      deeper: {class folder: tally of the images in its subfolders}.
      class_sizes: {class folder in `deeper`: number of all its images}.
    """

    def __init__(self, root: Path):
        self.root = root
        self.left_out: dict[str, Tally] = {}
        self.loose: dict[str, Tally] = {}
        self.empty: list[str] = []
        self.deeper: dict[str, Tally] = {}
        self.class_sizes: dict[str, int] = {}

    def split_files(self, folder: Path) -> Files:
        """Returns the images in the folder of a split, ordered by a hash of their paths."""
        self.note_loose_images(folder)
        classes = subfolders(folder)
        if not classes and self._relative(folder) not in self.loose:
            self.empty.append(self._relative(folder))
        return by_hash((each.name, file) for each in classes for file in self.class_files(each))

    def class_files(self, folder: Path) -> list[str]:
        """Returns the images of a class folder, as paths relative to the root."""
        found, here, seen = [], self._relative(folder), set()
        for each, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            status = os.stat(each)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder already seen
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            relative = os.path.relpath(each, self.root)
            for name in folders:
                if name.startswith("."):
                    self._leave_out("hidden", f"{relative}/{name}")
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            images = [f"{relative}/{name}" for name in names if self.is_image(each, relative, name)]
            if images and relative != here:
                _count(self.deeper, here, min(images), len(images))
            found += images
        if not found:
            self.empty.append(here)
        elif here in self.deeper:
            self.class_sizes[here] = len(found)
        return found

    def note_loose_images(self, folder: Path) -> None:
        """Records the images that lie directly in `folder`, which should only hold class folders or splits."""
        relative = self._relative(folder)
        for child in folder.iterdir():
            if child.is_dir():
                if child.name.startswith("."):
                    self._leave_out("hidden", f"{relative}/{child.name}")
            elif self.is_image(str(folder), relative, child.name):
                _count(self.loose, relative, f"{relative}/{child.name}")

    def is_image(self, folder: str, relative: str, name: str) -> bool:
        """Returns whether a file counts as an image, and records it in `left_out` if it does not.

        Args:
          folder: path of its folder.
          relative: path of its folder relative to the root.
          name: file name.
        """
        if name.startswith("."):
            self._leave_out("hidden", f"{relative}/{name}")
            return False
        extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 - faster, for a million files
        if extension in _EXTENSIONS or _begins_as_image(os.path.join(folder, name)):  # noqa: PTH118
            return True
        self._leave_out(extension or "without an extension", f"{relative}/{name}")
        return False

    def _leave_out(self, kind: str, example: str) -> None:
        _count(self.left_out, printable(kind), example)

    def _relative(self, folder: Path) -> str:
        return os.path.relpath(folder, self.root)


def images_below(path: Path) -> list[str]:
    """Returns the images in a folder and its subfolders, as paths relative to the folder."""
    return FolderScan(path).class_files(path)


def subfolders(path: Path) -> list[Path]:
    """Returns the subfolders of a folder, except hidden ones, sorted."""
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def holds_images(path: Path) -> bool:
    """Returns whether images lie directly in a folder."""
    scan = FolderScan(path)
    return any(scan.is_image(str(path), ".", child.name) for child in path.iterdir() if not child.is_dir())


def by_hash(files: Iterable[tuple[str, str]]) -> Files:
    """Returns files in an order that depends on nothing but their paths, and is unrelated to their names."""
    return sorted(files, key=lambda pair: hashlib.sha256(os.fsencode(pair[1])).digest())


def _count(tallies: dict[str, Tally], key: str, example: str, number: int = 1) -> None:
    """Adds `number` to the tally of a key. The tally keeps its first example."""
    tallies.setdefault(key, Tally(0, example.removeprefix("./"))).number += number


def _raise(error: OSError) -> None:
    raise error


def _begins_as_image(path: str) -> bool:
    """Returns whether the first bytes of a file are those of an image; False if it cannot be opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - opening a pipe would block
            return False
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return format_of(file.read(SIGNATURE_BYTES)) is not None
    except (FileNotFoundError, PermissionError):
        return False
