"""Files of predictions with one line per image: CSV or JSON lines, according to the suffix of the file name."""

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
# A function (columns with the name and label of the image, probabilities (classes,)) -> None.
Write = Callable[[Mapping[str, Any], np.ndarray], None]


def check_writable(path: Path) -> None:
    """Raises `UserError` unless `path` names a new .csv or .jsonl file in an existing folder."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--output takes a file that ends in {' or '.join(ENDINGS)}, got {path}")
    if path.exists():
        raise UserError(f"{path} exists already; name another file, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}")


def likeliest(probabilities: np.ndarray, count: int) -> list[int]:
    """Returns the indices of the `count` most likely classes (or all, if fewer), the most likely first."""
    return np.argsort(-probabilities, kind="stable")[:count].tolist()


@contextlib.contextmanager
def writing(path: Path, class_names: Sequence[str], top: int) -> Iterator[Write]:
    """Context manager that yields a function `write(image, probabilities)`, which writes the line of one image.

    The UTF-8 file appears only if the `with` block succeeds. A CSV file has the columns of `image`, followed by
    class_1, probability_1, class_2, probability_2, ... A JSON line has the keys of `image` and the lists "classes"
    and "probabilities".

    Args:
      path: file to write, see `check_writable`.
      class_names: names of the classes, in the order of the probabilities.
      top: number of most likely classes to write for each image.
    """
    count = min(top, len(class_names))
    # Class names may come from folder names, which need not be valid Unicode.
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
