"""The contents of a folder of images: its splits, its classes, and notes for the user."""

import dataclasses
from pathlib import Path

from flaxcnn.data.sources.class_warnings import class_warnings
from flaxcnn.data.sources.folder_hints import where_class_folders_lie
from flaxcnn.data.sources.folder_messages import count_line, left_out_lines, loose_images
from flaxcnn.data.sources.folder_scan import Files, FolderScan, subfolders
from flaxcnn.data.sources.folder_splits import SPLIT_NAMES, are_splits, split_classes
from flaxcnn.errors import UserError
from flaxcnn.terminal import listed, printable


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a folder of images.

    Attributes:
      path: path of the folder.
      splits: {name of a split: its images}. Images are ordered by a hash of their paths, so that a part such as
        "train[:10%]" has images of all classes.
      classes: names of the class folders that hold images, sorted.
      notes: printable lines for the user: number of images, files that are left out, possible mistakes.
    """

    path: Path
    splits: dict[str, Files]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def is_flat(path: Path) -> bool:
    """Returns whether a folder of images holds class folders instead of splits."""
    return not are_splits(subfolders(path))


def scan_folder(name: str, path: Path) -> Contents:
    """Scans a folder of images.

    Args:
      name: name of the dataset as the user wrote it, "folder:PATH".
      path: path of the folder.

    Raises:
      UserError: the folder holds fewer than two classes.
      OSError: the folder, or a file or folder in it, cannot be read.
    """
    scan = FolderScan(path)
    children = subfolders(path)
    scan.note_loose_images(path)
    if are_splits(children):
        splits = {child.name: scan.split_files(child) for child in children}
        splits = {split: files for split, files in splits.items() if files}
    else:
        splits = split_classes({child.name: scan.class_files(child) for child in children})
    classes = tuple(sorted({each for files in splits.values() for each, _ in files}))
    if len(classes) < 2:
        what = f"only the class {printable(classes[0])!r}" if classes else "no images in class folders"
        hint = loose_images(scan) + where_class_folders_lie(name, path)
        hint = hint or f"; it must hold a folder of images for each class, as in {printable(path)}/cat/1.jpg"
        raise UserError(f"{printable(path)} holds {what}{hint}")
    notes = [count_line(name, splits, classes), *left_out_lines(scan), *class_warnings(splits)]
    if not any(split.lower() in SPLIT_NAMES for split in splits):
        hint = where_class_folders_lie(name, path)
        notes.append(f"warning: {listed(splits)} counts as a split, because no folder is named train or test{hint}")
    return Contents(path, splits, classes, tuple(notes))
