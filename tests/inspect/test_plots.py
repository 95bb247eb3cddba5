import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

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


ODD = (
    "$",
    "$\\frac$",
    r"\frac{1}{2}",
    "$x^2$",
    "a_b",
    "x^2",
    "{",
    "new\nline",
    "tab\t",
    "Käfer",
    "кот",
    "stray \udcff",
    "%#&~",
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("usetex", [False, True])
def test_names_are_drawn_as_text(tmp_path, monkeypatch, usetex):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *rest, **more: figures.append(figure) or save(figure, *rest, **more)
    )
    records = [{"kind": "test", "epoch": 1.0, "loss": 1.0, "accuracy": 0.5}]
    with matplotlib.rc_context({"text.usetex": usetex}):
        plot_confusion_matrix(
            np.eye(len(ODD), dtype=int), ODD, tmp_path / "confusion.png", title="net on folder:$\\frac$"
        )
        plot_learning_curves(records, tmp_path / "curves.png", title="net on folder:$\\frac$\n_{")
    drawn = [text for figure in figures for text in figure.findobj(Text)]
    assert {"$\\frac$", "$x^2$", "Käfer", "net on folder:$\\frac$"} <= {text.get_text() for text in drawn}
    assert not any(text.get_parse_math() or text.get_usetex() for text in drawn)
    assert not any("\n" in text.get_text() for text in drawn)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("title", ["a long name of a data set " * 5, "x" * 200, "Pets_OF_2024-" * 9, "net on pets"])
@pytest.mark.parametrize("classes", [2, 12])
def test_a_long_title_stays_within_the_figure(tmp_path, monkeypatch, title, classes):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *rest, **more: figures.append(figure) or save(figure, *rest, **more)
    )
    names = [f"class {index}" for index in range(classes)]
    plot_confusion_matrix(np.eye(classes, dtype=int), names, tmp_path / "confusion.png", title=title)
    plot_learning_curves([], tmp_path / "curves.png", title=title)
    for figure in figures:
        (drawn,) = [text for text in figure.findobj(Text) if text.get_text().startswith(title[:5])]
        assert "".join(drawn.get_text().split()) == "".join(title.split())
        box = drawn.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        for axis in figure.axes:
            assert not box.overlaps(axis.get_tightbbox()) and axis.get_tightbbox().y0 >= 0
