"""Messages about a scanned folder of images: its contents, and the files that are left out."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from flaxcnn.data.sources.folder_scan import Files, FolderScan, Tally
from flaxcnn.terminal import MAX_NAMED, listed, printable


def count_line(name: str, splits: Mapping[str, Files], classes: tuple[str, ...]) -> str:
    """Returns a line with the number of classes, and of images in each split."""
    sizes = []
    for split, files in splits.items():
        present = len({each for each, _ in files})
        partly = "" if present == len(classes) else f" of {present:,} classes"
        sizes.append(f"{printable(split)} {len(files):,}{partly}")
    return f"{printable(name)} holds {len(classes):,} classes; images: {', '.join(sizes)}"


def left_out_lines(scan: FolderScan) -> Iterator[str]:
    """Yields lines about files that are left out, and about images in subfolders of their class folder."""
    if scan.empty:
        yield f"without images, so not a class: {listed(scan.empty)}"
    if scan.left_out:
        kinds = sorted(scan.left_out.items(), key=lambda item: -item[1].number)
        parts = [f"{tally.number:,} {kind} ({printable(tally.example)})" for kind, tally in kinds[:MAX_NAMED]]
        if rest := kinds[MAX_NAMED:]:
            parts.append(f"{sum(tally.number for _, tally in rest):,} of {len(rest)} other kinds")
        yield f"left out, because hidden or not an image: {', '.join(parts)}"
    for folder, tally in scan.loose.items():
        images = "1 image that lies" if tally.number == 1 else f"{tally.number:,} images that lie"
        yield f"warning: left out: {images} {_place(scan, folder, tally)}"
    for folder, tally in list(scan.deeper.items())[:MAX_NAMED]:
        yield (
            f"of class {printable(Path(folder).name)}, {tally.number:,} of {scan.class_sizes[folder]:,} images "
            f"lie in folders below it, such as {printable(tally.example)}"
        )
    if rest := list(scan.deeper)[MAX_NAMED:]:
        yield f"the same for {len(rest):,} more classes"


def loose_images(scan: FolderScan) -> str:
    """Returns a hint for an error message, which says where images lie outside of class folders; "" if nowhere."""
    parts = []
    for folder, tally in scan.loose.items():
        images = "1 image lies" if tally.number == 1 else f"{tally.number:,} images lie"
        parts.append(f"; {images} {_place(scan, folder, tally)}")
    return "".join(parts)


def _place(scan: FolderScan, folder: str, tally: Tally) -> str:
    shown = printable(scan.root if folder == "." else folder)
    return f"directly in {shown} and in no class folder, such as {printable(tally.example)}"
