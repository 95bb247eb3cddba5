"""flaxcnn predict."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

import flaxcnn
from flaxcnn.config import DataConfig, ModelConfig, ParallelConfig, TrainConfig
from flaxcnn.trained.datasets import open_files
from flaxcnn.trained.prediction import predict
from flaxcnn.trained.run import load_trained
from flaxcnn.training import loop
from tests.conftest import ROOT
from tests.images import write_folder
from tests.verbs import read_rows, run


def test_predict_names_the_digit_in_an_image_file(trained, capsys, test_digits, tmp_path):
    workdir, _ = trained
    images, labels = test_digits
    paths = []
    for index in range(10):
        image = cv2.resize(images[index], (80, 80), interpolation=cv2.INTER_NEAREST)
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), np.dstack([image] * 3) if index % 2 else image)
    code, out, _ = run(capsys, "predict", workdir, *paths)
    assert code == 0
    blocks = out.strip().split(str(tmp_path))[1:]
    first = [re.findall(r"(\d\.\d{4})  (\S+)", block) for block in blocks]
    assert [len(lines) for lines in first] == [5] * 10
    assert sum(lines[0][1] == str(labels[index]) for index, lines in enumerate(first)) >= 8
    for lines in first:
        probabilities = [float(probability) for probability, _ in lines]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.001


def test_predict_takes_folders_and_writes_files(trained, capsys, test_digits, digits_folder, tmp_path):
    workdir, _ = trained
    folder, (digits, labels) = digits_folder, test_digits
    single = folder / str(labels[0]) / "000.png"
    experiment, state = load_trained(workdir)
    predictor = flaxcnn.Predictor(experiment.model, state.variables, preprocess=experiment.views)
    expected = predictor.probabilities(digits)
    files = [str(single), *sorted(str(path) for path in folder.rglob("*.png"))]
    for name, top in (("all.jsonl", 10), ("all.csv", 3), ("many.csv", 99)):
        arguments = ["predict", workdir, single, folder, "--output", tmp_path / name, "--top", top]
        code, out, err = run(capsys, *arguments)
        assert (code, err) == (0, "") and "predictions of 360 images" in out and out.count("\n") == 1
        rows = read_rows(tmp_path / name)
        assert [row["file"] for row in rows] == files
        for row in rows:
            probabilities = expected[int(Path(row["file"]).stem)]
            best = np.argsort(-probabilities)[:top]
            np.testing.assert_allclose(row["probabilities"], probabilities[best], rtol=1e-4, atol=1e-6)
            assert row["classes"] == [str(index) for index in best]
    code, out, err = run(capsys, *arguments)
    assert code == 2 and "exists already" in err
    assert run(capsys, "predict", workdir, folder / "3", "--top", 2)[1].count("\n") == 3 * int((labels == 3).sum())


def test_predictions_of_which_one_fails_are_written_whole_or_not_at_all(trained, capsys, digits_folder, tmp_path):
    shutil.copytree(digits_folder, tmp_path / "images")
    for number in range(25):
        (tmp_path / "images" / "9" / f"zz{number}.png").write_bytes(b"\x89PNG")
    arguments = ["predict", trained[0], tmp_path / "images", "--output", tmp_path / "new.csv"]
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and "zz0.png: " in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    code, out, err = run(capsys, *arguments, "--bad-images", "skip")
    lines = err.splitlines()
    assert code == 0 and "predictions of 359 images" in out and len(read_rows(tmp_path / "new.csv")) == 359
    assert lines[0].endswith(": 25") and "zz0.png: " in lines[1] and lines[-1] == "  and 5 more"


def test_names_in_any_script_are_printed_and_written(trained, capsys, digits_folder, tmp_path):
    names = ('кот, "Barsik".png', "猫 😀.png", "new\nline.png", os.fsdecode(b"\xff.png"), "$x$.png")
    for name in names:
        shutil.copy(next((digits_folder / "3").iterdir()), tmp_path / name)
    code, out, err = run(capsys, "predict", trained[0], tmp_path, "--top", 1)
    assert (code, err) == (0, "") and len(out.splitlines()) == 10 and "猫 😀.png" in out
    for ending in ("csv", "jsonl"):
        path = tmp_path.parent / f"{tmp_path.name}.{ending}"
        assert run(capsys, "predict", trained[0], tmp_path, "--output", path)[0] == 0
        found = {Path(row["file"]).name for row in read_rows(path)}
        assert len(found) == 5 and {'кот, "Barsik".png', "猫 😀.png", "new\nline.png", "$x$.png"} <= found


def test_predict_holds_no_more_for_more_images(trained, digits_folder):
    """All images decoded would take 2,872 x 96 x 96 bytes, 25 MiB."""
    experiment, state = load_trained(trained[0])
    large = dataclasses.replace(experiment, image_shape=(96, 96, 1))
    dataset = open_files(large, [digits_folder] * 8)
    found = predict(large, state, dataset, batch_size=16, on_bad=None)
    next(found)
    tracemalloc.start()
    count = 1 + sum(1 for _ in found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 8 * 359 and peak < 4 * 2**20


@pytest.mark.slow
def test_a_process_that_predicts_3000_images_holds_little_more_than_of_10(trained, tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "0.jpg"), cv2.resize(pixels, (300, 256)))
    for number in range(1, 3000):
        (tmp_path / "images" / f"{number}.jpg").hardlink_to(tmp_path / "images" / "0.jpg")
    config = TrainConfig(
        batch_size=4,
        duration="1 steps",
        parallel=ParallelConfig(strategy="jit"),
        model=ModelConfig(name="lenet5"),
        data=DataConfig(name=f"folder:{write_folder(tmp_path / 'pets', 6)}", image_size=256),
    )
    loop.fit(config, tmp_path / "run")

    def held(*images):
        command = ["predict", tmp_path / "run", *images, "--top", 1]
        process = subprocess.Popen(
            [sys.executable, "-m", "flaxcnn", *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        return usage.ru_maxrss / 1024

    few = held(*(tmp_path / "images" / f"{number}.jpg" for number in range(10)))
    assert held(tmp_path / "images") < few + 300


def test_predict_gives_what_evaluate_does_whatever_the_home_directory_is_called(
    pets, capsys, tmp_path, monkeypatch
):
    workdir, _ = pets
    monkeypatch.setenv("HOME", str(workdir.parent))
    evaluated = ["evaluate", "~/run", "--data", "folder:~/pets", "--split", "all", "--output", tmp_path / "a.csv"]
    assert run(capsys, *evaluated)[0] == 0
    assert run(capsys, "predict", "~/run", "~/pets", "--output", "~/b.csv")[0] == 0
    by_file = {row["file"]: row for row in read_rows(workdir.parent / "b.csv")}
    (workdir.parent / "b.csv").unlink()
    rows = read_rows(tmp_path / "a.csv")
    assert len(rows) == 45 == len(by_file)
    for row in rows:
        np.testing.assert_allclose(row["probabilities"], by_file[row["file"]]["probabilities"], atol=1e-5)
    assert run(capsys, "export", "~/run", "~/program")[0] == 0
    assert (workdir.parent / "program.json").exists()
