"""Results at the end of a run: printed to the console, written to results.json, and drawn as figures."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rich.console

from flaxcnn.data.sources.folder import FOLDER
from flaxcnn.errors import first_line
from flaxcnn.paths import local_path
from flaxcnn.runs.recorder import read_metrics, say
from flaxcnn.runs.workdir import write_json
from flaxcnn.terminal import printable
from flaxcnn.training.evaluation import Evaluation, class_accuracy
from flaxcnn.training.experiment import Experiment

# With more classes than this, only the classes with the lowest accuracy are printed.
TABLE_CLASSES = 20


def report_results(
    console: rich.console.Console,
    workdir: Path,
    experiment: Experiment,
    evaluations: Mapping[str, Evaluation],
    *,
    step: int,
) -> None:
    """Writes, prints and draws the evaluations at the end of a run.

    Args:
      console: console to print to.
      workdir: folder of the run, in which files are written.
      experiment: configuration and class names.
      evaluations: evaluations on the test split: "test" of the parameters, and "averaged" of the averaged
        parameters, if kept.
      step: number of steps taken before the evaluation.
    """
    write_results(workdir, experiment, evaluations, step=step)
    for kind, evaluation in evaluations.items():
        what = "averaged parameters " if kind == "averaged" else ""
        checkpoint, split = f"{what}after step {step:,}", experiment.config.data.test_split
        print_evaluation(console, experiment, evaluation, split=split, checkpoint=checkpoint)
    draw_results(console, workdir, experiment, evaluations["test"])


def print_evaluation(
    console: rich.console.Console,
    experiment: Experiment,
    evaluation: Evaluation,
    *,
    split: str,
    checkpoint: str,
) -> None:
    """Prints the accuracy on a split, the accuracy of each class, and the confusion matrix if it fits.

    Args:
      console: console to print to.
      experiment: class names.
      evaluation: evaluation to print.
      split: name of the split.
      checkpoint: description of the evaluated parameters, such as "after step 100".
    """
    names = tuple(map(printable, experiment.class_names))
    correct = round(evaluation.accuracy * evaluation.count)
    missing = f", {evaluation.left_out:,} left out" if evaluation.left_out else ""
    top5 = f", top-5 {evaluation.accuracy_top5:.4f}" if len(names) > 5 else ""
    say(
        console,
        f"{split} accuracy {evaluation.accuracy:.4f} ({correct:,} of {evaluation.count:,} right{missing}){top5}, "
        f"loss {evaluation.loss:.4f}, {checkpoint}",
    )
    if evaluation.confusion is not None:
        few = len(names) <= TABLE_CLASSES
        confusion = evaluation.confusion
        lines = _class_lines(confusion, names, console.width) if few else _worst_classes(confusion, names)
        for line in lines:
            say(console, line)


def write_results(
    workdir: Path, experiment: Experiment, evaluations: Mapping[str, Evaluation], *, step: int
) -> None:
    """Writes the evaluations to `results.json`; arguments are those of `report_results`."""
    evaluation = evaluations["test"]
    results: dict[str, Any] = {"step": step, experiment.config.data.test_split: evaluation.scalars}
    if averaged := evaluations.get("averaged"):
        results["averaged"] = averaged.scalars
    if tested := [record for record in read_metrics(workdir) if record["kind"] == "test"]:
        results["best"] = max(tested, key=lambda record: (record["accuracy"], record["step"]))
    if evaluation.confusion is not None:
        accuracy = [None if np.isnan(value) else float(value) for value in class_accuracy(evaluation.confusion)]
        results["class_accuracy"] = dict(zip(experiment.class_names, accuracy, strict=True))
        results["confusion"] = evaluation.confusion.tolist()
    write_json(workdir / "results.json", results)


def draw_results(
    console: rich.console.Console, workdir: Path, experiment: Experiment, evaluation: Evaluation
) -> None:
    """Draws `learning_curves.png` and `confusion_matrix.png`; if this fails, prints a warning of one line."""
    name = experiment.config.data.name
    if name.startswith(FOLDER):  # the title has room only for the last part of the path
        name = local_path(name.removeprefix(FOLDER)).absolute().name
    title = f"{experiment.config.model.name} on {name}"
    with _drawing(console, workdir / "learning_curves.png") as path:
        from flaxcnn.inspect import plots  # imports matplotlib, which only the figures need

        plots.plot_learning_curves(read_metrics(workdir), path, title=title)
    if evaluation.confusion is None:
        return
    with _drawing(console, workdir / "confusion_matrix.png") as path:
        from flaxcnn.inspect import plots

        plots.plot_confusion_matrix(
            evaluation.confusion,
            experiment.class_names,
            path,
            title=f"{title}: {evaluation.accuracy:.4f} of {evaluation.count:,} right",
        )


@contextlib.contextmanager
def _drawing(console: rich.console.Console, path: Path) -> Iterator[Path]:
    """Context manager that prints any error of drawing a figure as a warning of one line, and suppresses it."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield path
        except Exception as error:  # matplotlib may be missing or broken, or unable to draw a text
            say(console, f"warning: {path.name} could not be drawn: {first_line(error)}")
            return
    if remarks := [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]:
        say(console, f"warning: {path.name}: {remarks[0].splitlines()[0]}")


def _class_lines(confusion: np.ndarray, names: tuple[str, ...], width: int) -> list[str]:
    """Returns a line for each class with its accuracy and, if it fits, its row of the confusion matrix."""
    label_width = max(len(name) for name in names) + 4
    cell = max(len(str(confusion.max())), len(str(len(names)))) + 1
    fits = label_width + 10 + cell * len(names) <= width
    title = "each class, its accuracy" + (", its row of the confusion matrix:" if fits else ":")
    lines = [title]
    for index, (name, accuracy) in enumerate(zip(names, class_accuracy(confusion), strict=True)):
        row = "".join(f"{count or '.':>{cell}}" for count in confusion[index]) if fits else ""
        label = name if name == str(index) else f"{index} {name}"
        shown = "none  " if np.isnan(accuracy) else f"{accuracy:.4f}"  # none: the split has no such images
        lines.append(f"  {label:<{label_width}}{shown} {row}".rstrip())
    return lines


def _worst_classes(confusion: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """Returns a line for each class of lowest accuracy, with the class that it was most often mistaken for."""
    accuracy = class_accuracy(confusion)
    wrong = confusion * (1 - np.eye(len(names), dtype=int))
    lines = [f"the {TABLE_CLASSES} worst classes:"]
    for index in np.argsort(accuracy, kind="stable")[:TABLE_CLASSES]:
        other = f", mostly taken for {names[wrong[index].argmax()]}" if wrong[index].any() else ""
        lines.append(f"  {accuracy[index]:.4f}  {names[index]}{other}")
    return lines
