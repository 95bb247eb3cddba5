"""The end of a run: the numbers on the screen, results.json, and the pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table

from flaxcnn.training.evaluation import Evaluation
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.logging import read_metrics, say
from flaxcnn.training.workdir import write_json

# Beyond so many classes a table of all of them hides more than it shows.
TABLE_CLASSES = 20


def print_evaluation(
    console: rich.console.Console,
    experiment: Experiment,
    evaluation: Evaluation,
    *,
    split: str,
    checkpoint: str,
) -> None:
    """Prints the accuracy on a split, that of each class, and the confusion matrix."""
    names = experiment.class_names
    correct = round(evaluation.accuracy * evaluation.count)
    top5 = f", top-5 {evaluation.accuracy_top5:.4f}" if len(names) > 5 else ""
    say(
        console,
        f"{split} accuracy {evaluation.accuracy:.4f} ({correct:,} of {evaluation.count:,} right){top5}, "
        f"loss {evaluation.loss:.4f}, {checkpoint}",
    )
    if evaluation.confusion is None:
        return
    if len(names) <= TABLE_CLASSES:
        console.print(_confusion_table(evaluation, names))
    else:
        console.print(_worst_classes(evaluation, names))


def write_results(workdir: Path, experiment: Experiment, evaluation: Evaluation, *, step: int) -> None:
    """Writes `results.json`, `learning_curves.png` and `confusion_matrix.png`."""
    from flaxcnn.inspect import plots  # brings in matplotlib, which training can do without until here

    config = experiment.config
    title = f"{config.model.name} on {config.data.name}"
    results: dict[str, Any] = {"step": step, config.data.test_split: evaluation.scalars}
    records = read_metrics(workdir)
    if tested := [record for record in records if record["kind"] == "test"]:
        results["best"] = max(tested, key=lambda record: record["accuracy"])
    if evaluation.confusion is not None:
        accuracy = [None if np.isnan(value) else float(value) for value in evaluation.class_accuracy]
        results["class_accuracy"] = dict(zip(experiment.class_names, accuracy, strict=True))
        results["confusion"] = evaluation.confusion.tolist()
        plots.plot_confusion_matrix(
            evaluation.confusion,
            experiment.class_names,
            workdir / "confusion_matrix.png",
            title=f"{title}: {evaluation.accuracy:.4f} of {evaluation.count:,} right",
        )
    write_json(workdir / "results.json", results)
    plots.plot_learning_curves(records, workdir / "learning_curves.png", title=title)


def _confusion_table(evaluation: Evaluation, names: tuple[str, ...]) -> rich.table.Table:
    table = rich.table.Table(box=None, title="confusion matrix: rows true, columns predicted", title_justify="left")
    table.add_column("class", no_wrap=True)
    table.add_column("accuracy", justify="right")
    for index in range(len(names)):
        table.add_column(str(index), justify="right", no_wrap=True)
    for index, (name, accuracy, row) in enumerate(
        zip(names, evaluation.class_accuracy, evaluation.confusion, strict=True)
    ):
        label = name if name == str(index) else f"{index} {name}"
        table.add_row(label, f"{accuracy:.4f}", *(str(count) if count else "." for count in row))
    return table


def _worst_classes(evaluation: Evaluation, names: tuple[str, ...]) -> rich.table.Table:
    table = rich.table.Table(box=None, title=f"the {TABLE_CLASSES} worst classes", title_justify="left")
    for column in ("class", "accuracy", "mostly taken for"):
        table.add_column(column)
    wrong = evaluation.confusion * (1 - np.eye(len(names), dtype=int))
    for index in np.argsort(evaluation.class_accuracy, kind="stable")[:TABLE_CLASSES]:
        other = names[wrong[index].argmax()] if wrong[index].any() else ""
        table.add_row(names[index], f"{evaluation.class_accuracy[index]:.4f}", other)
    return table
