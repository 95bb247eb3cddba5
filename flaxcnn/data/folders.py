"""What a folder of images holds: its splits, its classes, what is left out of it, and what looks like a slip.

The folder holds a folder for each split, and that one for each class, `PATH/train/cat/1.jpg`; or directly one for
each class, `PATH/cat/1.jpg`. What lies deeper belongs to its class. A class folder without an image is no class.

For data workers: the standard library and `pictures` alone.
"""

import collections
import dataclasses
import difflib
import hashlib
import os
import shlex
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flaxcnn.data.pictures import SIGNATURE_BYTES, format_of
from flaxcnn.errors import UserError, printable

# Of the images of a class in a folder without splits, one in so many is for testing.
TEST_SHARE = 5
# Folders of these names are splits, in capitals or not, also if an image has strayed into them.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
# Files of these endings count as images without being opened. All others are opened, and told by their first bytes.
_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
# Of a list so many are named, and the others counted.
_NAMED = 5
# To look for misspelt names takes time that grows with the square of their number.
_COMPARED = 100
# Where class folders may lie below the folder that was named: so deep, and among so many folders.
_DEPTH, _VISITED = 4, 2000

Files = list[tuple[str, str]]  # (class, file below the folder)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What was found in a folder.

    Attributes:
      splits: {split: its images}, each in the order of a hash of the file's name, so that a part of it, as in
        "train[:10%]", has something of each class.
      classes: names of the class folders that hold images, sorted.
      notes: lines for the user, fit to print: how many images there are, what is left out, what looks like a slip.
    """

    splits: dict[str, Files]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def look_through(name: str, path: Path) -> Contents:
    """Looks through a folder.

    Args:
      name: what the user calls it, "folder:PATH".
      path: where it lies.

    Raises:
      UserError: it holds less than two classes.
      OSError: it, or something below it, cannot be read.
    """
    look = _Look(path)
    children = _folders(path)
    look.note_loose(path)
    if _are_splits(children):
        splits = {child.name: look.classes_in(child) for child in children}
        splits = {split: files for split, files in splits.items() if files}
    else:
        splits = _split_classes({child.name: look.class_files(child) for child in children})
    classes = tuple(sorted({kind for files in splits.values() for kind, _ in files}))
    if len(classes) < 2:
        what = f"only the class {printable(classes[0])!r}" if classes else "no images in class folders"
        hint = look.misplaced() + _where_class_folders_lie(name, path)
        hint = hint or f"; it takes a folder of images for each class, as in {printable(path)}/cat/1.jpg"
        raise UserError(f"{printable(path)} holds {what}{hint}")
    notes = [_count_line(name, splits, classes), *look.notes(), *_slips(splits)]
    if not any(split.lower() in _SPLITS for split in splits):
        hint = _where_class_folders_lie(name, path)
        notes.append(f"warning: {_listed(splits)} counts as a split, for want of one called train or test{hint}")
    return Contents(splits, classes, tuple(notes))


def is_flat(path: Path) -> bool:
    """Returns whether a folder holds the folders of classes, and none of splits."""
    return not _are_splits(_folders(path))


def images_below(path: Path) -> list[str]:
    """Returns the images in a folder and below, as paths below it."""
    return _Look(path).class_files(path)


def missing_split(name: str, path: Path, split: str, splits: Mapping[str, Files]) -> str:
    """Returns what to add to the message that a folder has no such split: what lies there, and what to write."""
    there = {child.name: child for child in _folders(path)}
    if split in there:
        look = _Look(path)
        look.classes_in(there[split])
        found = look.misplaced() or f"; {printable(split)} holds no images"
    elif not any(known.lower() in _SPLITS for known in splits):
        found = _where_class_folders_lie(name, path)
    else:
        found = ""
        for other, folder in there.items():
            if other not in splits and other.lower() in _SPLITS:
                look = _Look(path)
                look.classes_in(folder)
                found += look.misplaced()
    if set(splits) == {"train"}:
        found += (
            "; to test on a part of train: --config.data.train_split='train[:80%]' "
            "--config.data.test_split='train[80%:]'"
        )
    return found


class _Look:
    """One look through a folder: gathers images, and notes what is left out."""

    def __init__(self, root: Path):
        self._root = root
        self._left_out: dict[str, list] = {}  # {kind: [number, example]}
        self._loose: dict[str, list] = {}  # {folder: [number of images outside of class folders, example]}
        self._empty: list[str] = []
        self._deeper: dict[str, list] = {}  # {class folder: [images in folders below it, images, example]}

    def classes_in(self, folder: Path) -> Files:
        """Returns the images of a split."""
        self.note_loose(folder)
        kinds = _folders(folder)
        if not kinds and self._relative(folder) not in self._loose:
            self._empty.append(self._relative(folder))
        return _by_hash((kind.name, file) for kind in kinds for file in self.class_files(kind))

    def class_files(self, folder: Path) -> list[str]:
        """Returns the images of a class folder, as paths below the root."""
        found, here, seen = [], self._relative(folder), set()
        for each, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
            status = os.stat(each)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it, or two to one
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            relative = os.path.relpath(each, self._root)
            for name in folders:
                if name.startswith("."):
                    self._leave_out("hidden", f"{relative}/{name}")
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            images = [f"{relative}/{name}" for name in names if self._is_image(each, relative, name)]
            if images and relative != here:
                _count(self._deeper, here, min(images), len(images))
            found += images
        if not found:
            self._empty.append(here)
        elif here in self._deeper:
            self._deeper[here].append(len(found))
        return found

    def note_loose(self, folder: Path) -> None:
        """Notes the files that lie in a folder of class folders, outside of these."""
        relative = self._relative(folder)
        for child in folder.iterdir():
            if child.is_dir():
                if child.name.startswith("."):
                    self._leave_out("hidden", f"{relative}/{child.name}")
            elif self._is_image(str(folder), relative, child.name):
                _count(self._loose, relative, f"{relative}/{child.name}")

    def misplaced(self) -> str:
        """Returns where images lie outside of class folders, as a part of a message."""
        parts = []
        for folder, (number, example) in self._loose.items():
            images = "1 image lies" if number == 1 else f"{number:,} images lie"
            where = f"directly in {self._shown(folder)} and in no class folder"
            parts.append(f"; {images} {where}, such as {printable(example)}")
        return "".join(parts)

    def notes(self) -> Iterator[str]:
        """Yields the lines on what is left out."""
        if self._empty:
            yield f"empty, and so no class: {_listed(self._empty)}"
        if self._left_out:
            kinds = sorted(self._left_out.items(), key=lambda item: -item[1][0])
            parts = [f"{number:,} {kind} ({printable(example)})" for kind, (number, example) in kinds[:_NAMED]]
            if rest := kinds[_NAMED:]:
                parts.append(f"{sum(found[0] for _, found in rest):,} of {len(rest)} other kinds")
            yield f"left out, being hidden or no image: {', '.join(parts)}"
        for folder, (number, example) in self._loose.items():
            images = "1 image that lies" if number == 1 else f"{number:,} images that lie"
            where = f"directly in {self._shown(folder)} and in no class folder"
            yield f"warning: left out: {images} {where}, such as {printable(example)}"
        for folder, (number, example, total) in list(self._deeper.items())[:_NAMED]:
            yield (
                f"of class {printable(Path(folder).name)}, {number:,} of {total:,} images lie in folders below it, "
                f"such as {printable(example)}"
            )
        if rest := list(self._deeper.values())[_NAMED:]:
            yield f"the same for {len(rest):,} more classes"

    def _is_image(self, folder: str, relative: str, name: str) -> bool:
        """Returns whether a file counts as an image, and notes it if it does not."""
        if name.startswith("."):
            self._leave_out("hidden", f"{relative}/{name}")
            return False
        ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million
        if ending in _ENDINGS or _begins_as_image(os.path.join(folder, name)):  # noqa: PTH118
            return True
        self._leave_out(ending or "without an ending", f"{relative}/{name}")
        return False

    def _leave_out(self, kind: str, example: str) -> None:
        _count(self._left_out, printable(kind), example)

    def _relative(self, folder: Path) -> str:
        return os.path.relpath(folder, self._root)

    def _shown(self, relative: str) -> str:
        return printable(self._root if relative == "." else relative)


def _count(counts: dict[str, list], key: str, example: str, number: int = 1) -> None:
    """Adds to the number of a kind, and keeps the first example."""
    found = counts.setdefault(key, [0, example.removeprefix("./")])
    found[0] += number


def _refuse(error: OSError) -> None:
    raise error


def _begins_as_image(path: str) -> bool:
    """Returns whether the first bytes of a file are those of an image; a file that may not be opened is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - to open a pipe would wait for its other end
            return False
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return format_of(file.read(SIGNATURE_BYTES)) is not None
    except (FileNotFoundError, PermissionError):
        return False


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _holds_images(path: Path) -> bool:
    """Returns whether images lie directly in a folder."""
    look = _Look(path)
    return any(look._is_image(str(path), ".", child.name) for child in path.iterdir() if not child.is_dir())


def _are_splits(children: list[Path]) -> bool:
    """Returns whether folders are splits, not classes; beside "train/cat/1.jpg" there may be "unsorted/1.jpg"."""
    named = [child for child in children if child.name.lower() in _SPLITS]
    with_images = [child for child in children if _holds_images(child)]
    if len(named) == len(children) or not with_images:
        return True
    return any(child not in with_images and any(map(_holds_images, _folders(child))) for child in named)


def _split_classes(classes: dict[str, list[str]]) -> dict[str, Files]:
    train, test = [], []
    for kind, files in classes.items():
        ordered = _by_hash((kind, file) for file in files)
        for_test = max(len(ordered) // TEST_SHARE, 1) if len(ordered) > 1 else 0
        test += ordered[:for_test]
        train += ordered[for_test:]
    return {"train": _by_hash(train), "test": _by_hash(test)}


def _by_hash(files: Iterable[tuple[str, str]]) -> Files:
    return sorted(files, key=lambda pair: hashlib.sha256(os.fsencode(pair[1])).digest())


# What is said of it


def _count_line(name: str, splits: Mapping[str, Files], classes: tuple[str, ...]) -> str:
    sizes = []
    for split, files in splits.items():
        present = len({kind for kind, _ in files})
        partly = "" if present == len(classes) else f" of {present:,} classes"
        sizes.append(f"{printable(split)} {len(files):,}{partly}")
    return f"{printable(name)} holds {len(classes):,} classes; images: {', '.join(sizes)}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(printable(each) for each in names[:_NAMED]) + more


def _slips(splits: Mapping[str, Files]) -> Iterator[str]:
    """Yields warnings of classes that are in one split alone, those of nearly the same name together."""
    where: dict[str, set[str]] = collections.defaultdict(set)
    for split, files in splits.items():
        for kind, _ in files:
            where[kind].add(split)
    single = sorted(kind for kind, found in where.items() if len(found) == 1)
    if len(splits) < 2 or not single:
        return
    pairs = _lookalikes(single, where)
    for one, other in pairs[:_NAMED]:
        yield (
            f"warning: class {_quoted(one, other)} is in {_listed(sorted(where[one]))} alone, "
            f"{_quoted(other, one)} in {_listed(sorted(where[other]))}: is one of them misspelt?"
        )
    if pairs[_NAMED:]:
        yield f"warning: the same for {len(pairs) - _NAMED:,} more pairs of classes"
    told = {kind for pair in pairs for kind in pair}
    for split in splits:
        if alone := [kind for kind in single if where[kind] == {split} and kind not in told]:
            what = "class" if len(alone) == 1 else "classes"
            yield f"warning: {what} in {printable(split)} alone: {_listed(alone)}"


def _lookalikes(single: list[str], where: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Returns pairs of a class of one split alone, and one of other splits whose name differs by little."""
    plain: dict[str, list[str]] = collections.defaultdict(list)
    for kind in where:
        plain[_plain(kind)].append(kind)
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for kind in single:
        near = plain[_plain(kind)]
        if len(near) == 1 and len(single) <= _COMPARED and len(where) <= 10 * _COMPARED:
            near = [each for key in difflib.get_close_matches(_plain(kind), plain, 3, 0.75) for each in plain[key]]
        others = [each for each in near if not where[each] & where[kind]]
        if others:
            pairs.setdefault(frozenset((kind, others[0])), (kind, others[0]))
    return list(pairs.values())


def _plain(name: str) -> str:
    """Returns a name without what is easily mistaken: capitals, forms of a letter, spaces, hyphens, underscores."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter not in " _-")


def _quoted(name: str, other: str) -> str:
    """Quotes a name, by its code points if it looks like the other one."""
    alike = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    return ascii(name) if alike else f"'{printable(name)}'"


def _where_class_folders_lie(name: str, path: Path) -> str:
    """Returns where there are class folders below a folder, and what to write, as a part of a message."""
    level, visited = [path], 0
    for _ in range(_DEPTH):
        found, deeper = [], []
        for folder in level:
            children = _folders(folder)
            visited += 1
            holding = [child for child in children if _holds_images(child)]
            if folder != path and len(holding) > 1:
                found.append(folder)
            deeper += children
        if found:
            return _name_to_write(name, path, found)
        level = deeper[: _VISITED - visited]
    if _holds_images(path) and sum(map(_holds_images, _folders(path.resolve().parent))) > 1:
        return f"; it is one class itself, so name the folder above it: {_flag(name, '..')}"
    return ""


def _name_to_write(name: str, path: Path, found: list[Path]) -> str:
    below = [Path(os.path.relpath(folder, path)) for folder in found]
    places = f"; class folders lie in {_listed(map(str, below))}"
    if inside := [each for each in below if each.parts[0].lower() in _SPLITS]:
        split = printable(inside[0].parts[0])
        return f"{places}: move them up, as into {split}" if len(inside[0].parts) > 1 else places
    homes = dict.fromkeys(each.parent if each.name.lower() in _SPLITS else each for each in below)
    return f"{places}: write {' or '.join(_flag(name, str(home)) for home in list(homes)[:3])}"


def _flag(name: str, below: str) -> str:
    scheme, _, written = name.partition(":")
    return printable(shlex.quote(f"--config.data.name={scheme}:{os.path.normpath(os.path.join(written, below))}"))  # noqa: PTH118
