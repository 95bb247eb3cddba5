"""flaxcnn evaluate."""

import re
import shutil
from pathlib import Path

import pytest

from tests.verbs import read_rows, right_of, run


@pytest.mark.parametrize("batch_size", [None, 1, 359, 1000])
def test_evaluate_prints_the_accuracy_of_training(trained, capsys, batch_size):
    workdir, result = trained
    extra = [] if batch_size is None else ["--batch-size", batch_size]
    code, out, _ = run(capsys, "evaluate", workdir, *extra)
    correct = round(result.accuracy * 359)
    assert code == 0 and f"test accuracy {result.accuracy:.4f} ({correct} of 359 right)" in out
    assert "confusion matrix" in out


def test_evaluate_takes_the_best_checkpoint_or_another_split(trained, capsys):
    workdir, result = trained
    code, out, _ = run(capsys, "evaluate", workdir, "--checkpoint", "best")
    assert code == 0
    assert float(re.search(r"test accuracy (\S+)", out)[1]) >= round(result.accuracy, 4)
    code, out, _ = run(capsys, "evaluate", workdir, "--split", "train[:100]")
    assert code == 0 and "of 100 right" in out


def test_evaluate_on_a_folder_of_the_same_images_finds_the_same(trained, capsys, digits_folder):
    workdir, result = trained
    code, out, _ = run(capsys, "evaluate", workdir, "--data", f"folder:{digits_folder}")
    assert code == 0 and right_of(out) == (round(result.accuracy * 359), 359)
    assert "split all (the folder has no splits), 359 images" in out
    code, out, _ = run(capsys, "evaluate", workdir, "--data", f"folder:{digits_folder}", "--split", "test[:10]")
    assert code == 0 and right_of(out)[1] == 10
    assert run(capsys, "evaluate", workdir, "--data", "digits")[1].endswith(run(capsys, "evaluate", workdir)[1])


@pytest.mark.parametrize("splits", [("val",), ("train", "test"), ("train", "validation"), ("testing",)])
def test_evaluate_takes_the_labels_of_classes_by_their_names(trained, capsys, digits_folder, tmp_path, splits):
    workdir, result = trained
    chosen = (3, 7, 8)  # 0, 1 and 2 of this folder
    for split in splits:
        for label in chosen:
            shutil.copytree(digits_folder / str(label), tmp_path / split / str(label))
    (tmp_path / splits[0] / "3" / "notes.txt").write_text("")
    code, out, err = run(capsys, "evaluate", workdir, "--data", f"folder:{tmp_path}")
    assert "notes.txt" in err
    rows = result.confusion[list(chosen)]
    assert code == 0 and f"split {splits[-1]}, " in out
    assert right_of(out) == (sum(rows[row, label] for row, label in enumerate(chosen)), rows.sum())


def test_evaluate_names_the_files_of_classes_that_have_other_labels_here(trained, capsys, digits_folder, tmp_path):
    for label in (3, 7):
        shutil.copytree(digits_folder / str(label), tmp_path / "images" / str(label))
    output = tmp_path / "some.csv"
    code, out, _ = run(
        capsys, "evaluate", trained[0], "--data", f"folder:{tmp_path / 'images'}", "--output", output
    )
    rows = read_rows(output)
    assert code == 0 and len(rows) == right_of(out)[1]
    assert all(Path(row["file"]).parent.name == row["label"] for row in rows)
    assert sum(row["label"] == row["classes"][0] for row in rows) == right_of(out)[0]


def test_a_class_that_was_not_trained_is_named(trained, capsys, digits_folder, tmp_path):
    for name in ("3", "zebra"):
        shutil.copytree(digits_folder / "3", tmp_path / name)
    code, out, err = run(capsys, "evaluate", trained[0], "--data", f"folder:{tmp_path}")
    assert code == 2 and out == "" and "'zebra'" in err.splitlines()[-1] and err.count("error: ") == 1
    (tmp_path / "zebra").rename(tmp_path / "8 ")
    err = run(capsys, "evaluate", trained[0], "--data", f"folder:{tmp_path}")[2]
    assert "'8 '" in err.splitlines()[-1] and err.count("error: ") == 1


@pytest.mark.parametrize("ending", ["csv", "jsonl", "CSV"])
def test_evaluate_writes_a_line_an_image(trained, capsys, digits_folder, tmp_path, ending):
    workdir, result = trained
    for data, count in (([], 359), (["--data", f"folder:{digits_folder}"], 359)):
        path = tmp_path / f"{len(data)}.{ending}"
        code, out, _ = run(capsys, "evaluate", workdir, *data, "--output", path)
        rows = read_rows(path)
        assert code == 0 and f"predictions of {count} images in {path}" in out and len(rows) == count
        assert [int(row["index"]) for row in rows] == list(range(count))
        right = sum(row["label"] == row["classes"][0] for row in rows)
        assert right == round(result.accuracy * count)
        if data:
            assert all(Path(row["file"]).parent.name == row["label"] for row in rows)


def test_evaluate_finds_the_data_of_a_run_in_its_new_place(pets, capsys, tmp_path, monkeypatch):
    workdir, folder = pets
    monkeypatch.setenv("HOME", str(tmp_path))
    before = run(capsys, "evaluate", workdir)[1]
    assert right_of(before)[1] == 9
    moved = folder.rename(tmp_path / "moved")
    try:
        code, out, err = run(capsys, "evaluate", workdir)
        assert code == 2 and out == "" and re.match(r"error: [^\n]*--data folder:PATH[^\n]*\n\Z", err)
        code, out, _ = run(capsys, "evaluate", workdir, "--data", "folder:~/moved")
        assert code == 0 and "split test, 9 images" in out and out.endswith(before)
        shutil.copy(next((moved / "temple").iterdir()), moved / "temple" / "one more.jpg")
        code, out, _ = run(capsys, "evaluate", workdir, "--data", "folder:~/moved")
        assert code == 0 and right_of(out)[1] == 46
        (moved / "temple" / "one more.jpg").unlink()
    finally:
        moved.rename(folder)
