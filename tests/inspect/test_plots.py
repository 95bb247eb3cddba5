import cv2
import numpy as np
import pytest

from flaxcnn.inspect.plots import plot_confusion_matrix, plot_learning_curves


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [2, 10, 30, 100])
def test_confusion_matrix_is_drawn_for_few_and_many_classes(tmp_path, classes):
    confusion = np.random.default_rng(0).integers(0, 50, (classes, classes))
    confusion[0] = 0  # a class of which there is no example
    path = tmp_path / "confusion.png"
    plot_confusion_matrix(confusion, [f"class {i}" for i in range(classes)], path, title="some network")
    assert cv2.imread(str(path)).std() > 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_learning_curves_are_drawn_also_of_a_run_that_just_began(tmp_path, epochs):
    records = [
        {"kind": kind, "epoch": float(epoch), "loss": 1 / epoch, "accuracy": 1 - 1 / epoch}
        for epoch in range(1, epochs + 1)
        for kind in ("interval", "epoch", "test")
    ]
    path = tmp_path / "curves.png"
    plot_learning_curves(records, path, title="some network")
    assert cv2.imread(str(path)).shape[1] == 1320
