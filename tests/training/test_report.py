"""The numbers at the end, for few and many classes, wide and narrow screens."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console

from flaxcnn.training.evaluation import Evaluation
from flaxcnn.training.report import draw_results, print_evaluation


def printed(confusion, names, width):
    confusion = np.asarray(confusion)
    count = int(confusion.sum())
    evaluation = Evaluation(count, 0.5, np.trace(confusion) / count, 1.0, confusion)
    console = rich.console.Console(file=io.StringIO(), width=width)
    experiment = SimpleNamespace(class_names=names)
    print_evaluation(console, experiment, evaluation, split="test", checkpoint="after step 7")
    return console.file.getvalue().splitlines()


def test_few_classes_show_accuracy_and_the_confusion_matrix():
    lines = printed([[3, 1], [0, 12345]], ("cat [x]", "dog"), width=80)
    assert lines[0] == "test accuracy 0.9999 (12,348 of 12,349 right), loss 0.5000, after step 7"
    assert [line.split() for line in lines[2:]] == [
        ["0", "cat", "[x]", "0.7500", "3", "1"],
        ["1", "dog", "1.0000", ".", "12345"],
    ]


def test_a_matrix_that_does_not_fit_is_left_out_and_the_accuracies_stay():
    names = tuple(f"class number {index}" for index in range(20))
    lines = printed(np.diag([10_000] * 20), names, width=80)
    assert "confusion" not in lines[1]
    assert all(re.fullmatch(r"  \d+ class number \d+ +1\.0000", line) for line in lines[2:])
    assert len(lines) == 22


def test_many_classes_show_the_worst_and_what_they_were_taken_for():
    confusion = np.diag([10] * 100)
    confusion[42] = 0
    confusion[42, 7] = 10
    confusion[99] = 0  # none in the split
    lines = printed(confusion, tuple(f"n{index}" for index in range(100)), width=80)
    assert len(lines) == 22
    assert lines[2] == "  0.0000  n42, mostly taken for n7"
    assert not any("nan" in line for line in lines)


def test_a_class_without_images_and_names_of_several_lines_keep_the_table_in_order():
    lines = printed([[3, 1, 0], [0, 0, 0], [0, 0, 2]], ("new\nline", "tab\t", "stray \udcff"), width=80)
    assert [line.split() for line in lines[2:]] == [
        ["0", "new\\nline", "0.7500", "3", "1", "."],
        ["1", "tab\\t", "none", ".", ".", "."],
        ["2", "stray", "\\xff", "1.0000", ".", ".", "2"],
    ]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("folder:/a/long/way/to/pets", "lenet5 on pets"),
        ("folder:pets/", "lenet5 on pets"),
        ("folder:./a/../pets", "lenet5 on pets"),
        ("emnist/letters", "lenet5 on emnist/letters"),
    ],
)
def test_figures_name_a_folder_by_its_last_part(tmp_path, monkeypatch, data, shown):
    titles = []
    for figure in ("learning_curves", "confusion_matrix"):
        monkeypatch.setattr(f"flaxcnn.inspect.plots.plot_{figure}", lambda *_, title: titles.append(title))
    (tmp_path / "metrics.jsonl").write_text("")
    config = SimpleNamespace(model=SimpleNamespace(name="lenet5"), data=SimpleNamespace(name=data))
    evaluation = Evaluation(2, 0.5, 1.0, 1.0, np.eye(2, dtype=int))
    draw_results(
        rich.console.Console(), tmp_path, SimpleNamespace(config=config, class_names=("a", "b")), evaluation
    )
    assert len(titles) == 2 and all(title.partition(":")[0] == shown for title in titles)
