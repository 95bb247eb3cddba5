"""Files of predictions: a line an image, as CSV or as JSON lines, by the ending of the name."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.atomic import appears_whole
from flaxcnn.errors import UserError

ENDINGS = (".csv", ".jsonl")
# (what the image is called, and its label, by the name of the column; its probabilities) -> nothing.
Write = Callable[[Mapping[str, Any], np.ndarray], None]


def check_writable(path: Path) -> None:
    """Raises `UserError` unless predictions may go to a file, before any are made."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--output takes a file that ends in {' or '.join(ENDINGS)}, got {path}")
    if path.exists():
        raise UserError(f"{path} exists already; name another file, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}")


def likeliest(probabilities: np.ndarray, count: int) -> list[int]:
    """Returns the classes of the highest probabilities (classes,), the highest first; fewer if there are fewer."""
    return np.argsort(-probabilities, kind="stable")[:count].tolist()


@contextlib.contextmanager
def writing(path: Path, class_names: Sequence[str], top: int) -> Iterator[Write]:
    """Yields what writes the line of an image; the file, UTF-8, is there when the block ends well, or not at all.

    CSV has a column for each name of the mapping, then class_1, probability_1, class_2 and so on. JSON lines have
    these names, and the lists "classes" and "probabilities".
    """
    count = min(top, len(class_names))
    # A class may be named after a folder whose name is no text in any encoding.
    with (
        appears_whole(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        rows = csv.writer(file)
        is_csv = path.suffix.lower() == ".csv"
        wrote_header = False

        def write(image: Mapping[str, Any], probabilities: np.ndarray) -> None:
            nonlocal wrote_header
            best = likeliest(probabilities, count)
            classes = [class_names[index] for index in best]
            values = [float(f"{probabilities[index]:.6g}") for index in best]
            if not is_csv:
                line = {**image, "classes": classes, "probabilities": values}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                return
            if not wrote_header:
                names = [f"{name}_{rank}" for rank in range(1, count + 1) for name in ("class", "probability")]
                rows.writerow([*image, *names])
                wrote_header = True
            pairs = zip(classes, values, strict=True)
            rows.writerow([*image.values(), *(cell for pair in pairs for cell in pair)])

        yield write
