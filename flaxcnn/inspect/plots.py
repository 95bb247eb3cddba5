"""Figures of a run: learning curves and confusion matrix. Text is drawn literally, also if it contains `$`."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flaxcnn.terminal import printable

# Settings with which matplotlib does not interpret names of classes and datasets as formulas.
_AS_TEXT = {"text.parse_math": False, "text.usetex": False}
# With more classes than this, class names would be illegible, so the matrix is drawn without them.
NAMED_CLASSES = 40
# With more classes than this, counts would not fit into the cells, so they are left out.
COUNTED_CLASSES = 20


@matplotlib.rc_context(_AS_TEXT)
def plot_learning_curves(records: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draws loss and accuracy in training and on the test split over epochs, and writes a PNG file.

    Args:
      records: records of `metrics.jsonl`, of which the kinds "epoch", "test" and "averaged" are drawn.
      path: PNG file to write.
      title: title of the figure.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for kind, label in (("epoch", "training"), ("test", "test"), ("averaged", "test, averaged")):
            points = [(record["epoch"], record[name]) for record in records if record["kind"] == kind]
            points = [point for point in points if point[1] is not None]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=3,
                    label=f"{label} ({points[-1][1]:.4f})",
                )
        axis.set(xlabel="epoch", ylabel="loss (nats)" if name == "loss" else name)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    _set_title(figure, title)
    figure.savefig(path, dpi=120)


@matplotlib.rc_context(_AS_TEXT)
def plot_confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Draws a confusion matrix, with cells shaded by their fraction of the row, and writes a PNG file.

    Args:
      confusion: counts (classes, classes), with a row per label and a column per prediction.
      class_names: names of the classes, in the order of the labels.
      path: PNG file to write.
      title: title of the figure.
    """
    classes, class_names = len(class_names), list(map(printable, class_names))
    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = min(max(5.0, 0.55 * classes + 2), 16)
    figure = Figure(figsize=(size, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    if classes <= NAMED_CLASSES:
        axis.set_xticks(range(classes), class_names, rotation=90)
        axis.set_yticks(range(classes), class_names)
    if classes <= COUNTED_CLASSES:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if fraction[row, column] > 0.5 else "black"
            axis.text(column, row, f"{confusion[row, column]}", ha="center", va="center", color=color, fontsize=8)
    axis.set(xlabel="predicted", ylabel="true")
    _set_title(figure, title)
    figure.colorbar(image, shrink=0.75, label="fraction of the class")
    figure.savefig(path, dpi=120)


def _set_title(figure: Figure, title: str) -> None:
    """Sets a figure's title, wrapped at about 8 characters per inch, and adds height for each further line."""
    lines = textwrap.wrap(printable(title), int(8 * figure.get_figwidth()))
    figure.suptitle("\n".join(lines))
    figure.set_figheight(figure.get_figheight() + 0.2 * (len(lines) - 1))
