"""Where encoded pictures and their labels lie: a prepared TFDS set, or a folder with a folder for each class."""

import dataclasses
import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flaxcnn.data import folders
from flaxcnn.data.pictures import BadPicture
from flaxcnn.errors import UserError, first_line, nearest, printable
from flaxcnn.paths import local_path

FOLDER = "folder:"

Encoded = tuple[bytes | BadPicture, int]


class Source(Protocol):
    """A split of encoded pictures, each with a label; it can be sent to another process, without its list of names.

    Attributes:
      name: of the data set.
      split: of the data set.
      class_names: in the order of the labels.
      image_shape: (height, width, channels); the first two are None where the pictures differ in size.
      notes: lines for the user on what was found and what was left out; none of a set that was prepared.
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
        """Returns the number of pictures."""
        ...

    def items(self, indices: Sequence[int]) -> list[Any]:
        """Returns what `read` needs to find the pictures with those numbers."""
        ...

    def read(self, items: Sequence[Any]) -> list[Encoded]:
        """Returns (encoded picture, label) for each item; a `BadPicture` where the file cannot be read.

        Raises:
          UserError: the set is damaged.
        """
        ...

    @property
    def fingerprint(self) -> str:
        """Returns what tells this split from others, and from itself after pictures have come or gone."""
        ...

    def describe(self, index: int) -> str:
        """Returns what a person would call the picture with that number."""
        ...


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
        path, contents = _look_through(name)
        sources = {
            split: FolderSource.of(name, split, path, contents, files) for split, files in contents.splits.items()
        }
    else:
        builder = _prepared_builder(name, data_dir)
        sources = {
            split: dataclasses.replace(_tfds_source(builder, split), unlabelled=True)
            for split in builder.info.splits
        }
    return {split: source for split, source in sources.items() if len(source)}


def refuse_data_dir(name: str, data_dir: str | None, flag: str) -> None:
    """Raises `UserError` if a folder of prepared sets is given for a folder of images, which would ignore it.

    Args:
      name: of the data set.
      data_dir: what the user has given, or None.
      flag: by which.
    """
    if data_dir and name.startswith(FOLDER):
        raise UserError(
            f"{flag} is where prepared sets lie, and {printable(name)} is read where it lies: leave out {flag}, "
            f"and write the whole path after {FOLDER}"
        )


def open_files(paths: Sequence[str | Path]) -> "FolderSource":
    """Opens image files, and all images in folders and below, these sorted by path, without labels: they have -1.

    Raises:
      UserError: there is no such file, or a folder holds no images.
    """
    files: list[str] = []
    for path in map(local_path, paths):
        if path.is_dir():
            try:
                found = [os.path.normpath(path / file) for file in folders.images_below(path)]
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
    return folders.is_flat(local_path(name.removeprefix(FOLDER)))


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
    notes: tuple[str, ...] = ()

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
                f"run: python -m flaxcnn prepare {name}{folder}{prepare.folder_hint(name)}"
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
    """A split of a folder of pictures, in colour; see `Source`, and `flaxcnn.data.folders` for what counts as one.

    A folder without splits has two: a fifth of each class, by a hash of the file's name, is the split "test", and
    the rest "train".
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    path: str
    # Encoded, because text takes NumPy four bytes a letter.
    files: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()
    image_shape: tuple[int | None, int | None, int] = (None, None, 3)

    @classmethod
    def open(cls, name: str, split: str) -> "FolderSource":
        """Looks through a folder, named "folder:PATH"."""
        path, contents = _look_through(name)
        return cls.of(name, split, path, contents, _slice_list(contents.splits, split, name, path))

    @classmethod
    def of(
        cls, name: str, split: str, path: Path, contents: folders.Contents, chosen: folders.Files
    ) -> "FolderSource":
        """Makes it of the (class, file) pairs that were found, or of some of them."""
        labels = {kind: label for label, kind in enumerate(contents.classes)}
        return cls(
            name=name,
            split=split,
            class_names=_distinct(map(printable, contents.classes)),
            path=str(path),
            files=np.array([os.fsencode(file) for _, file in chosen], bytes),
            labels=np.array([labels[kind] for kind, _ in chosen], np.int32),
            notes=contents.notes,
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

    def file(self, index: int) -> str:
        """Returns the path of the file."""
        return os.path.join(self.path, os.fsdecode(bytes(self.files[index])))  # noqa: PTH118

    def describe(self, index: int) -> str:
        """Returns the path of the file, made fit to print."""
        return printable(self.file(index))

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


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names of which no two are equal, as those of two folders may be when they are made fit to print."""
    found: dict[str, None] = {}
    for name in names:
        number = 2
        unused = name
        while unused in found:
            unused = f"{name} ({number})"
            number += 1
        found[unused] = None
    return tuple(found)


def _look_through(name: str) -> tuple[Path, folders.Contents]:
    """Returns the path of "folder:PATH", and what lies there."""
    written = name.removeprefix(FOLDER)
    path = local_path(written)
    try:
        if not written:
            raise UserError(f"data set '{printable(name)}' names no folder; write folder:PATH")
        if not path.is_dir():
            where = printable(path.absolute())
            what = f"{where} is a file, and no folder" if path.exists() else f"there is no folder {where}"
            raise UserError(f"data set '{printable(name)}' cannot be read: {what}")
        return path, folders.look_through(name, path)
    except OSError as error:
        where = printable(os.fsdecode(error.filename or path))
        raise UserError(f"cannot look through {printable(path)}: {error.strerror}: {where}") from error


def _slice_list(found: dict[str, folders.Files], split: str, name: str, path: Path) -> folders.Files:
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
            raise UserError(f"{_no_split(found, base, name)}{folders.missing_split(name, path, base, found)}")
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
    return UserError(printable(f"data set {name} has no split {split!r}{hint}"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
