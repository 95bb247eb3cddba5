"""Where encoded pictures and their labels lie: a prepared TFDS set, or a folder with a folder for each class."""

import dataclasses
import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flaxcnn.data.pictures import BadPicture
from flaxcnn.errors import UserError, first_line, nearest
from flaxcnn.paths import local_path

FOLDER = "folder:"
# Of the pictures of a class in a folder without splits, one in so many is for testing.
TEST_SHARE = 5
# Folders of these names are splits, also if a picture has strayed into them.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")

Encoded = tuple[bytes | BadPicture, int]


class Source(Protocol):
    """A split of encoded pictures, each with a label; it can be sent to another process, without its list of names.

    Attributes:
      name: of the data set.
      split: of the data set.
      class_names: in the order of the labels.
      image_shape: (height, width, channels); the first two are None where the pictures differ in size.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]

    def __len__(self) -> int:
        """Returns the number of pictures."""

    def items(self, indices: Sequence[int]) -> list[Any]:
        """Returns what `read` needs to find the pictures with those numbers."""

    def read(self, items: Sequence[Any]) -> list[Encoded]:
        """Returns (encoded picture, label) for each item; a `BadPicture` where the file cannot be read.

        Raises:
          UserError: the set is damaged.
        """

    @property
    def fingerprint(self) -> str:
        """Returns what tells this split from others, and from itself after pictures have come or gone."""

    def describe(self, index: int) -> str:
        """Returns what a person would call the picture with that number."""


def open_source(name: str, split: str, data_dir: str | None = None) -> Source:
    """Opens a split of a data set; `digits` is prepared if need be.

    Args:
      name: TFDS name, see `prepare.open_builder`; or "folder:PATH", see `FolderSource`.
      split: such as "train" or "test[:1000]".
      data_dir: folder of prepared sets; None for TFDS's own.

    Raises:
      UserError: unknown, not prepared, no such split or an empty one, or not images with one label each.
    """
    if name.startswith(FOLDER):
        source = FolderSource.open(name, split)
    else:
        source = _tfds_source(_prepared_builder(name, data_dir), split)
    if not len(source):
        raise UserError(f"split {split!r} of data set {source.name} is empty")
    return source


def open_splits(name: str, data_dir: str | None = None) -> dict[str, Source]:
    """Opens all splits of a data set that have pictures, by their names; a picture without a label has -1.

    Raises:
      UserError: see `open_source`.
    """
    if name.startswith(FOLDER):
        path, found, class_names = _look_through(name)
        sources = {split: FolderSource.of(name, split, path, class_names, found[split]) for split in found}
    else:
        builder = _prepared_builder(name, data_dir)
        sources = {
            split: dataclasses.replace(_tfds_source(builder, split), unlabelled=True)
            for split in builder.info.splits
        }
    return {split: source for split, source in sources.items() if len(source)}


def open_files(paths: Sequence[str | Path]) -> "FolderSource":
    """Opens image files, and all images in folders and below, these sorted by path, without labels: they have -1.

    Raises:
      UserError: there is no such file, or a folder holds no images.
    """
    files: list[str] = []
    for path in map(local_path, paths):
        if path.is_dir():
            try:
                found = [os.path.normpath(path / file) for file in _walk(path, path)]
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
    """Returns whether "folder:PATH", which must be there, holds the folders of classes, and none of splits."""
    return not _are_splits(_folders(local_path(name.removeprefix(FOLDER))))


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of a prepared TFDS set, read from its array_record files without TensorFlow; see `Source`.

    Attributes:
      unlabelled: whether pictures without a label, which have -1, are read as well.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    folder: str
    records: Any
    image_key: str
    label_key: str
    unlabelled: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def items(self, indices: Sequence[int]) -> list[int]:
        """Returns the numbers themselves."""
        return [int(index) for index in indices]

    def read(self, items: Sequence[int]) -> list[Encoded]:
        """Returns (encoded picture, label) for each number; many at once are much quicker than one by one."""
        from google.protobuf.message import DecodeError  # slow to import, as is the next
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            found = []
            for record in self.records.__getitems__(list(items)):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                encoded = feature[self.image_key].bytes_list.value[0]
                found.append((encoded, feature[self.label_key].int64_list.value[0]))
        except (RuntimeError, OSError, ValueError, KeyError, IndexError, DecodeError) as error:  # signs of damage
            raise self._damaged(error) from error
        lowest = -1 if self.unlabelled else 0
        if any(not lowest <= label < len(self.class_names) for _, label in found):
            raise UserError(f"split {self.split!r} of {self.name} holds images without a label; take another split")
        return found

    @property
    def fingerprint(self) -> str:
        """Of the set, its version, the split and its size."""
        return _digest(
            f"{Path(self.folder).parent.name}/{Path(self.folder).name} {self.split} {len(self)}".encode()
        )

    def describe(self, index: int) -> str:
        """Returns its number, because a set has no names of files."""
        return f"image {index} of split {self.split!r} of {self.name}"

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"cannot read split {self.split!r} of {self.name} in {self.folder}: {first_line(error)}; put its files "
            f"back, or remove the folder and prepare it again"
        )


def _prepared_builder(name: str, data_dir: str | None) -> Any:
    from flaxcnn.data import prepare

    builder = prepare.open_builder(name, data_dir)
    if not prepare.is_prepared(builder):
        if name != "digits":
            folder = f" --data-dir {data_dir}" if data_dir else ""
            raise UserError(
                f"data set {name} is not prepared in {builder.data_dir_root}; "
                f"run: python -m flaxcnn prepare {name}{folder}"
            )
        builder = prepare.prepare(name, data_dir)
    return builder


def _tfds_source(builder: Any, split: str) -> TfdsSource:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    from flaxcnn.data import prepare

    image_key, label_key = prepare.supervised_keys(builder)
    height, width, channels = builder.info.features[image_key].shape
    instructions = _instructions(builder.info.splits, split, split, builder.name)
    folder = str(builder.data_path)
    try:
        records = ArrayRecordDataSource(instructions) if instructions else ()
    except (RuntimeError, OSError, ValueError) as error:
        reason = f"{first_line(error)}; put its files back, or remove the folder and prepare it again"
        raise UserError(f"cannot read split {split!r} of {builder.name} in {folder}: {reason}") from error
    return TfdsSource(
        name=builder.name,
        split=split,
        class_names=tuple(builder.info.features[label_key].names),
        image_shape=(height, width, channels or 3),
        folder=folder,
        records=records,
        image_key=image_key,
        label_key=label_key,
    )


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A split of a folder of pictures, in colour; see `Source`.

    The folder holds a folder for each split, and that one for each class, `PATH/train/cat/1.jpg`; or directly one
    for each class, `PATH/cat/1.jpg`. Then a fifth of each class, by a hash of the file's name, is the split "test",
    and the rest "train". What is deeper belongs to its class. Pictures have the usual endings of a file name, in
    capitals or not; hidden files are left out. A split is in the order of that hash, so that a part of it, as in
    "train[:10%]", has something of each class.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    path: str
    # Encoded, because text takes NumPy four bytes a letter.
    files: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    image_shape: tuple[int | None, int | None, int] = (None, None, 3)

    @classmethod
    def open(cls, name: str, split: str) -> "FolderSource":
        """Looks through a folder, named "folder:PATH"."""
        path, found, class_names = _look_through(name)
        return cls.of(name, split, path, class_names, _slice_list(found, split, path))

    @classmethod
    def of(
        cls, name: str, split: str, path: str, class_names: tuple[str, ...], chosen: list[tuple[str, str]]
    ) -> "FolderSource":
        """Makes it of the (class, file) pairs that were found."""
        labels = {kind: label for label, kind in enumerate(class_names)}
        return cls(
            name=name,
            split=split,
            class_names=class_names,
            path=path,
            files=np.array([os.fsencode(file) for _, file in chosen], bytes),
            labels=np.array([labels[kind] for kind, _ in chosen], np.int32),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def items(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns the file and the label of each."""
        return [(bytes(self.files[index]), int(self.labels[index])) for index in indices]

    def read(self, items: Sequence[tuple[bytes, int]]) -> list[Encoded]:
        """Returns (content of the file, label) for each item."""
        return [(_content(os.path.join(os.fsencode(self.path), file)), label) for file, label in items]  # noqa: PTH118

    @property
    def fingerprint(self) -> str:
        """Of the names of all files and their order; not of what they hold."""
        return _digest(b"\0".join(self.files.tolist()))

    def describe(self, index: int) -> str:
        """Returns the path of the file, made fit to print."""
        path = Path(self.path, os.fsdecode(bytes(self.files[index])))
        return os.fsencode(path).decode(errors="backslashreplace")

    def __getstate__(self) -> dict[str, Any]:
        nothing = {"files": self.files[:0], "labels": self.labels[:0]}
        return self.__dict__ | nothing

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


# What is wrong with one file. Anything else is wrong with the machine or the network, and must not pass for a bad
# picture, which may be left out.
_OF_THE_FILE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def _content(path: bytes) -> bytes | BadPicture:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib takes no bytes
            return file.read()
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise UserError(
                f"cannot read {os.fsdecode(path)}: {error.strerror}; it may be there again later"
            ) from None
        return BadPicture(f"cannot be read: {error.strerror}")


def _look_through(name: str) -> tuple[str, dict[str, list[tuple[str, str]]], tuple[str, ...]]:
    """Returns the path of "folder:PATH", what `_scan` finds there, and the classes."""
    path = local_path(name.removeprefix(FOLDER))
    try:
        if not path.is_dir():
            raise UserError(f"data.name is {name!r}, and there is no folder {path}")
        found = _scan(path)
    except OSError as error:
        raise UserError(f"cannot look through {path}: {error.strerror}: {error.filename}") from error
    class_names = tuple(sorted({kind for files in found.values() for kind, _ in files}))
    if len(class_names) < 2:
        what = f"only the class {class_names[0]!r}" if class_names else "no pictures"
        raise UserError(
            f"{path} holds {what}; it takes a folder of pictures for each class, as in {path}/cat/1.jpg"
        )
    return str(path), found, class_names


def _scan(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Returns {split: [(class, file below path)]}, each in the order of a hash of the file's name.

    Raises:
      OSError: a folder cannot be read.
    """
    children = _folders(path)
    if not _are_splits(children):
        return _split_classes({child.name: _walk(path, child) for child in children})
    found = {}
    for child in children:
        classes = {kind.name: _walk(path, kind) for kind in _folders(child)}
        if any(classes.values()):
            found[child.name] = _by_hash((kind, file) for kind, files in classes.items() for file in files)
    return found


def _are_splits(children: list[Path]) -> bool:
    """Returns whether folders are splits, not classes; beside "train/cat/1.jpg" there may be "unsorted/1.jpg"."""
    named = [child for child in children if child.name in _SPLITS]
    with_pictures = [child for child in children if _pictures(child)]
    if len(named) == len(children) or not with_pictures:
        return True
    return any(child not in with_pictures and any(map(_pictures, _folders(child))) for child in named)


def _split_classes(classes: dict[str, list[str]]) -> dict[str, list[tuple[str, str]]]:
    train, test = [], []
    for kind, files in classes.items():
        ordered = _by_hash((kind, file) for file in files)
        for_test = max(len(ordered) // TEST_SHARE, 1) if len(ordered) > 1 else 0
        test += ordered[:for_test]
        train += ordered[for_test:]
    return {"train": _by_hash(train), "test": _by_hash(test)}


def _by_hash(files) -> list[tuple[str, str]]:
    return sorted(files, key=lambda pair: hashlib.sha256(os.fsencode(pair[1])).digest())


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _pictures(path: Path) -> bool:
    return any(_is_picture(child.name) and not child.is_dir() for child in path.iterdir())


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")


def _walk(root: Path, path: Path) -> list[str]:
    """Returns the pictures of a class, as paths below the root."""

    def refuse(error: OSError) -> None:
        raise error

    found, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True, onerror=refuse):
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it, or two to one
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(folder, root)
        found += [os.path.join(relative, name) for name in names if _is_picture(name)]  # noqa: PTH118 - a million
    return found


def _slice_list(found: dict[str, list[Any]], split: str, name: str) -> list[Any]:
    """Returns the part of the lists that TFDS's language of splits names."""
    from tensorflow_datasets.core import naming, splits

    if split in found:  # a folder may have a name that the language has no place for
        return found[split]
    template = naming.ShardedFileTemplate(data_dir=".", dataset_name="folder", filetype_suffix="list")
    chosen = []
    for part in split.split("+"):
        base, bracket, rest = part.strip().partition("[")
        files = [file for each in found.values() for file in each] if base == "all" else found.get(base)
        if files is None:
            raise _no_split(found, base, name)
        information = splits.SplitInfo(
            name="part", shard_lengths=[len(files)], num_bytes=0, filename_template=template
        )
        table = splits.SplitDict([information])
        for instruction in _instructions(table, f"part{bracket}{rest}", part.strip(), name):
            chosen += files[instruction.skip : instruction.skip + instruction.take]
    return chosen


def _instructions(splits: Any, split: str, written: str, name: str) -> Any:
    """Returns which records of which files TFDS reads for a split or a part of one, as the user has written it."""
    try:
        return splits[split].file_instructions
    except (KeyError, ValueError, NotImplementedError) as error:
        base = split.split("[")[0]
        if base in splits and base != split:
            raise UserError(
                f"data set {name} has no part {written!r}: its split has {splits[base].num_examples:,} pictures; "
                f"write for example {written.split('[')[0]}[:50%]"
            ) from error
        raise _no_split(splits, written, name) from error


def _no_split(known: Iterable[str], split: str, name: str) -> UserError:
    hint = nearest(split, known) or f"; it has {', '.join(known)}"
    return UserError(f"data set {name} has no split {split!r}{hint}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
