"""Hints for error messages about a folder that does not hold the expected classes or split."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from flaxcnn.data.sources.folder_messages import loose_images
from flaxcnn.data.sources.folder_scan import Files, FolderScan, holds_images, subfolders
from flaxcnn.data.sources.folder_splits import SPLIT_NAMES
from flaxcnn.terminal import listed, printable

# Maximum depth of the search for class folders, and maximum number of folders searched.
_MAX_DEPTH, _MAX_FOLDERS = 4, 2000


def missing_split(name: str, path: Path, split: str, splits: Mapping[str, Files]) -> str:
    """Returns a hint for the error that a split is missing: what the folder holds instead, and what to write.

    Args:
      name: "folder:PATH", as the user wrote it.
      path: path of the folder.
      split: the missing split.
      splits: {name of a split that the folder holds: its images}.
    """
    present = {child.name: child for child in subfolders(path)}
    if split in present:
        scan = FolderScan(path)
        scan.split_files(present[split])
        hint = loose_images(scan) or f"; {printable(split)} holds no images"
    elif not any(known.lower() in SPLIT_NAMES for known in splits):
        hint = where_class_folders_lie(name, path)
    else:
        hint = ""
        for other, folder in present.items():
            if other not in splits and other.lower() in SPLIT_NAMES:
                scan = FolderScan(path)
                scan.split_files(folder)
                hint += loose_images(scan)
    if set(splits) == {"train"}:
        hint += (
            "; to test on a part of train: --config.data.train_split='train[:80%]' "
            "--config.data.test_split='train[80%:]'"
        )
    return hint


def where_class_folders_lie(name: str, path: Path) -> str:
    """Returns a hint that says where below `path` there are class folders, and what to write; "" if nowhere."""
    level, visited = [path], 0
    for _ in range(_MAX_DEPTH):
        found, deeper = [], []
        for folder in level:
            children = subfolders(folder)
            visited += 1
            holding = [child for child in children if holds_images(child)]
            if folder != path and len(holding) > 1:
                found.append(folder)
            deeper += children
        if found:
            return _name_to_write(name, path, found)
        level = deeper[: _MAX_FOLDERS - visited]
    if holds_images(path) and sum(map(holds_images, subfolders(path.resolve().parent))) > 1:
        return f"; it is one class itself, so name the folder above it: {_flag(name, '..')}"
    return ""


def _name_to_write(name: str, path: Path, found: list[Path]) -> str:
    below = [Path(os.path.relpath(folder, path)) for folder in found]
    places = f"; class folders lie in {listed(map(str, below))}"
    if inside := [each for each in below if each.parts[0].lower() in SPLIT_NAMES]:
        split = printable(inside[0].parts[0])
        return f"{places}: move them up, as into {split}" if len(inside[0].parts) > 1 else places
    homes = dict.fromkeys(each.parent if each.name.lower() in SPLIT_NAMES else each for each in below)
    return f"{places}: write {' or '.join(_flag(name, str(home)) for home in list(homes)[:3])}"


def _flag(name: str, below: str) -> str:
    prefix, _, written = name.partition(":")
    path = os.path.normpath(os.path.join(written, below))  # noqa: PTH118
    return printable(shlex.quote(f"--config.data.name={prefix}:{path}"))
