"""python -m flaxcnn, in this process where that is enough."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import flaxcnn
from flaxcnn import list_models
from flaxcnn.cli import main
from flaxcnn.data import datasets
from flaxcnn.data.delivery import Delivery
from flaxcnn.data.sources import open_source
from flaxcnn.training import inference, loop
from tests.conftest import ROOT
from tests.pictures import piece, read_as_told, write_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """A work directory with a network that reads digits fairly well."""
    from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

    model = ModelConfig(name="lenet5")
    model.options.activation = "tanh"
    workdir = tmp_path_factory.mktemp("trained") / "run"
    config = TrainConfig(
        batch_size=32,
        duration="8 epochs",
        model=model,
        data=DataConfig(image_size=12),
        optimizer=OptimizerConfig(learning_rate=0.05),
    )
    result = loop.fit(config, workdir)
    assert result.accuracy > 0.9
    return workdir, result


def run(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


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


def test_predict_names_the_digit_in_a_picture_file(trained, capsys, tmp_path):
    workdir, _ = trained
    test = datasets.load(Delivery(open_source("digits", "test"), (8, 8, 1)), None)
    paths = []
    for index in range(10):
        picture = cv2.resize(test.images[index], (80, 80), interpolation=cv2.INTER_NEAREST)
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), np.dstack([picture] * 3) if index % 2 else picture)
    code, out, _ = run(capsys, "predict", workdir, *paths)
    assert code == 0
    blocks = out.strip().split(str(tmp_path))[1:]
    first = [re.findall(r"(\d\.\d{4})  (\S+)", block) for block in blocks]
    assert [len(lines) for lines in first] == [5] * 10
    assert sum(lines[0][1] == str(test.labels[index]) for index, lines in enumerate(first)) >= 8
    for lines in first:
        shares = [float(share) for share, _ in lines]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1.001


def test_export_writes_a_program_that_predicts_the_same(trained, capsys, tmp_path):
    workdir, _ = trained
    images = datasets.load(Delivery(open_source("digits", "test"), (8, 8, 1)), None).images[:3]
    picture = tmp_path / "0.png"
    cv2.imwrite(str(picture), images[0])
    code, out, _ = run(capsys, "export", workdir, tmp_path / "digits")
    assert code == 0 and "digits maps uint8 images of 8x8x1 to the probabilities of 10 classes" in out
    names = json.loads((tmp_path / "digits.json").read_text())["class_names"]
    shares = jax.export.deserialize(bytearray((tmp_path / "digits").read_bytes())).call(images)
    np.testing.assert_allclose(np.sum(shares, axis=1), 1, rtol=1e-5)
    first = np.argsort(-np.asarray(shares[0]))[:5]
    out = run(capsys, "predict", workdir, picture)[1]
    expected = [(f"{shares[0][index]:.4f}", names[index]) for index in first]
    assert [line[1] for line in expected] == re.findall(r"\d\.\d{4}  (\S+)", out)
    printed = [float(share) for share in re.findall(r"(\d\.\d{4})  ", out)]
    np.testing.assert_allclose(printed, [float(share) for share, _ in expected], atol=2e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "WORKDIR", "text.png"], "text.png exists already; name another file"),
        (["export", "WORKDIR", "nowhere/digits"], "there is no folder nowhere"),
        (["export", "nowhere", "digits"], "nowhere holds no run"),
        (["export", "WORKDIR", "digits", "--averaged"], "holds no averaged parameters"),
        (["predict", "WORKDIR", "text.png"], "text.png: neither JPEG nor PNG"),
        (["predict", "WORKDIR", "empty.png"], "empty.png: empty file"),
        (
            ["predict", "WORKDIR", "txt.png"],
            "cannot read txt.png: there is no such file; did you mean text.png",
        ),
        (["predict", "WORKDIR", "."], "empty.png: empty file; --bad-images skip leaves it out"),
        (
            ["predict", "WORKDIR", "empty.png", "--bad-images", "skip"],
            "no image can be read: empty.png: empty file",
        ),
        (["predict", "WORKDIR", "hollow"], "folder hollow holds no images"),
        (["predict", "WORKDIR", "text.png", "--top", "0"], "--top: '0' is not a whole number of 1 or more"),
        (["predict", "WORKDIR", "text.png", "--output", "a.txt"], "ends in .csv or .jsonl, got a.txt"),
        (["predict", "WORKDIR", "text.png", "--output", "no/a.csv"], "there is no folder no for a.csv"),
        (["predict", "WORKDIR", "text.png", "--output", "a.csv"], "text.png: neither JPEG nor PNG"),
        (["evaluate", "WORKDIR", "--output", "old.jsonl"], "old.jsonl exists already; name another file"),
        (["evaluate", "WORKDIR", "--data", "folder:/does/not/exist"], "there is no folder /does/not/exist"),
        (["evaluate", "WORKDIR", "--data", "folder:nowhere"], "/nowhere"),
        (["evaluate", "WORKDIR", "--data", "nowhere"], "unknown data set 'nowhere'"),
        (["evaluate", "WORKDIR", "--data", "hollow"], "a folder of images is written folder:hollow"),
        (["evaluate", "WORKDIR", "--data", "folder:hollow"], "holds no images"),
        (["evaluate", "WORKDIR", "--data", "digits", "--split", "tset"], "has no split 'tset'; did you mean test"),
        (["evaluate", "WORKDIR", "--data", "folder:hollow", "--data-dir", "."], "leave out --data-dir"),
        (["evaluate", "WORKDIR", "--dat", "digits"], "unrecognized arguments: --dat"),
        (["evaluate", "WORKDIR", "--check", "best"], "unrecognized arguments: --check"),
        (["predict", "WORKDIR", "text.png", "--out", "a.csv"], "unrecognized arguments: --out"),
        (["prepare", "digits", "--data", "sets"], "unrecognized arguments: --data sets"),
        (["export", "WORKDIR", "digits", "--average"], "unrecognized arguments: --average"),
        (["evaluate", "gs://bucket/run"], "gs://bucket/run is an address"),
        (["predict", "s3://bucket/run", "text.png"], "s3://bucket/run is an address"),
        (["export", "file:///run", "digits"], "file:///run is an address"),
        (["export", "WORKDIR", "gs://bucket/digits"], "gs://bucket/digits is an address"),
        (["predict", "WORKDIR", "https://host/a.png"], "https://host/a.png is an address"),
        (["predict", "WORKDIR", "text.png", "--output", "hdfs://host/a.csv"], "hdfs://host/a.csv is an address"),
        (["evaluate", "WORKDIR", "--output", "gs://bucket/a.csv"], "gs://bucket/a.csv is an address"),
        (["evaluate", "WORKDIR", "--data", "folder:gs://bucket/pets"], "gs://bucket/pets is an address"),
        (["evaluate", "WORKDIR", "--data", "gs://bucket/pets"], "gs://bucket/pets is an address"),
        (["evaluate", "WORKDIR", "--data-dir", "gs://bucket/sets"], "gs://bucket/sets is an address"),
        (["prepare", "digits", "--data-dir", "s3://bucket/sets"], "s3://bucket/sets is an address"),
        (["prepare", "digits", "--from", "s3://bucket/files"], "s3://bucket/files is an address"),
        (["prepare", "folder:gs://bucket/pets"], "gs://bucket/pets is an address"),
        (["prepare", "folder:gs://bucket/pets", "--resize", "64"], "gs://bucket/pets is an address"),
        (["predict", "nowhere", "text.png"], "nowhere holds no run"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["evaluate", "WORKDIR", "--checkpoint", "3"], "has no checkpoint '3'; write latest, best or one of"),
        (["evaluate", "WORKDIR", "--checkpoint", "newest"], "has no checkpoint 'newest'"),
        (["evaluate", "WORKDIR", "--split", "tset"], "has no split 'tset'; did you mean test"),
        (["evaluate", "WORKDIR", "--batch-size", "0"], "--batch-size: '0' is not a whole number of 1 or more"),
        (["evaluate", "WORKDIR", "--batch-size", "x"], "--batch-size: 'x' is not a whole number"),
        (["summary", "resnet5"], "unknown model 'resnet5'; did you mean resnet56, resnet50"),
        (["summary", "alexnet", "--image-size", "62"], "at least 63x63 pixels, got 62x62"),
        (["summary", "alexnet", "--batch", "0"], "--batch: '0' is not a whole number of 1 or more"),
        (["list", "no such*"], "no network is named like 'no such*'"),
        (["evaluate"], "required: WORKDIR"),
        (["evaluate"], "(python -m flaxcnn evaluate --help)"),
        (["evalute", "WORKDIR"], "did you mean evaluate"),
        (["summry", "lenet5"], "did you mean summary"),
        (["prepare", "digits", "--resize", "9", "--bad-images", "skp"], "did you mean skip"),
        (["summary", "lenet5", "--image-sze", "3"], "did you mean --image-size"),
        (["summary", "lenet5", "--image-sze", "3"], "(python -m flaxcnn summary --help)"),
        (["predict", "WORKDIR", "text.png", "--otput=a.csv"], "did you mean --output"),
        (["export", "WORKDIR", "digits", "--averagd"], "did you mean --averaged"),
        (["list", "resnte*"], "did you mean resnet"),
        (["list", "*denset121"], "did you mean densenet121"),
        (["summary", "lenet5", "--image-size", "22a"], "such as 224 or 224x160"),
        (["summary", "lenet5", "--image-size", "22x"], "such as 224 or 224x160"),
        (["export", "lenet5", "a", "--image-size", "0x9"], "such as 224 or 224x160"),
        (["summary", "lenet5", "--num-classes", "ten"], "'ten' is not a whole number of 0 or more"),
        (["summary", "lenet5", "--num-classes=-1"], "'-1' is not a whole number of 0 or more"),
        (["summary", "resnet18", "--set", "depths=1"], "lists of whole numbers (such as depths=1,1,1)"),
        ([], "required: VERB"),
        (["prepare", "fashion_mnst"], "unknown data set 'fashion_mnst'; did you mean fashion_mnist"),
        (["prepare", "mnist", "--from", "nowhere"], "nowhere is not a folder"),
        (["prepare", "mnist", "--resize", "0"], "--resize: '0' is not a whole number of 1 or more"),
        (
            ["prepare", "mnist", "--resize", "64"],
            "the pictures of mnist have 28x28 pixels: there is nothing to resize",
        ),
        (["prepare", "mnist", "--bad-images", "skip"], "--bad-images goes with --resize"),
        (["prepare", "folder:.", "--resize", "64", "--bad-images", "keep"], "--bad-images: invalid choice: 'keep'"),
        (
            ["prepare", "folder:.", "--resize", "64"],
            "holds no images in class folders",
        ),
        (["prepare", "folder:nowhere", "--resize", "64"], "/nowhere"),
        (["prepare", "folder:nowhere"], "/nowhere"),
        (["prepare", "folder:.", "--from", "."], "--from is for data sets that are downloaded"),
    ],
)
def test_mistakes_are_one_line_and_code_2(trained, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxcnn.data.prepare.has_tensorflow", lambda: True)
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "old.jsonl").write_text("")
    (tmp_path / "hollow").mkdir()
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, *(str(trained[0]) if word == "WORKDIR" else word for word in arguments))
    assert code == 2 and out == ""
    assert re.match(r"error: [^\n]*\n\Z", err) and message in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory, data_dir):
    """The test images of digits as files, by class; and their images and labels."""
    test = datasets.load(Delivery(open_source("digits", "test"), (8, 8, 1)), None)
    folder = tmp_path_factory.mktemp("digits")
    for index, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        cv2.imwrite(str(folder / str(label) / f"{index:03}.png"), image)
    return folder, test


def right_of(out):
    """(right, evaluated) of what evaluate prints."""
    return tuple(int(number) for number in re.search(r"\((\d+) of (\d+) right", out).groups())


def test_evaluate_on_a_folder_of_the_same_images_finds_the_same(trained, capsys, digits_folder):
    workdir, result = trained
    code, out, _ = run(capsys, "evaluate", workdir, "--data", f"folder:{digits_folder[0]}")
    assert code == 0 and right_of(out) == (round(result.accuracy * 359), 359)
    assert "split all (the folder has no splits), 359 images" in out
    code, out, _ = run(capsys, "evaluate", workdir, "--data", f"folder:{digits_folder[0]}", "--split", "test[:10]")
    assert code == 0 and right_of(out)[1] == 10
    assert run(capsys, "evaluate", workdir, "--data", "digits")[1].endswith(run(capsys, "evaluate", workdir)[1])


@pytest.mark.parametrize("splits", [("val",), ("train", "test"), ("train", "validation"), ("testing",)])
def test_evaluate_takes_the_labels_of_classes_by_their_names(trained, capsys, digits_folder, tmp_path, splits):
    workdir, result = trained
    chosen = (3, 7, 8)  # 0, 1 and 2 of this folder
    for split in splits:
        for label in chosen:
            shutil.copytree(digits_folder[0] / str(label), tmp_path / split / str(label))
    (tmp_path / splits[0] / "3" / "notes.txt").write_text("")
    code, out, err = run(capsys, "evaluate", workdir, "--data", f"folder:{tmp_path}")
    assert "notes.txt" in err
    rows = result.confusion[list(chosen)]
    assert code == 0 and f"split {splits[-1]}, " in out
    assert right_of(out) == (sum(rows[row, label] for row, label in enumerate(chosen)), rows.sum())


def test_a_class_that_was_not_trained_is_named(trained, capsys, digits_folder, tmp_path):
    for name in ("3", "zebra"):
        shutil.copytree(digits_folder[0] / "3", tmp_path / name)
    code, out, err = run(capsys, "evaluate", trained[0], "--data", f"folder:{tmp_path}")
    assert code == 2 and out == "" and "'zebra'" in err.splitlines()[-1] and err.count("error: ") == 1
    (tmp_path / "zebra").rename(tmp_path / "8 ")
    err = run(capsys, "evaluate", trained[0], "--data", f"folder:{tmp_path}")[2]
    assert "'8 '" in err.splitlines()[-1] and err.count("error: ") == 1


@pytest.mark.parametrize("ending", ["csv", "jsonl", "CSV"])
def test_evaluate_writes_a_line_an_image(trained, capsys, digits_folder, tmp_path, ending):
    workdir, result = trained
    for data, count in (([], 359), (["--data", f"folder:{digits_folder[0]}"], 359)):
        path = tmp_path / f"{len(data)}.{ending}"
        code, out, _ = run(capsys, "evaluate", workdir, *data, "--output", path)
        rows = read_rows(path)
        assert code == 0 and f"predictions of {count} images in {path}" in out and len(rows) == count
        assert [int(row["index"]) for row in rows] == list(range(count))
        right = sum(row["label"] == row["classes"][0] for row in rows)
        assert right == round(result.accuracy * count)
        if data:
            assert all(Path(row["file"]).parent.name == row["label"] for row in rows)


def read_rows(path):
    """The lines of a file of predictions, those of CSV brought into the shape of JSON's."""
    text = path.read_bytes().decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    rows = []
    for row in csv.DictReader(io.StringIO(text)):
        ranks = [name.removeprefix("class_") for name in row if name.startswith("class_")]
        classes = [row.pop(f"class_{rank}") for rank in ranks]
        probabilities = [float(row.pop(f"probability_{rank}")) for rank in ranks]
        rows.append({**row, "classes": classes, "probabilities": probabilities})
    return rows


def test_predict_takes_folders_and_writes_files(trained, capsys, digits_folder, tmp_path):
    workdir, _ = trained
    folder, test = digits_folder
    single = folder / str(test.labels[0]) / "000.png"
    experiment, state = inference.load_trained(workdir)
    predictor = flaxcnn.Predictor(experiment.model, state.variables, views=experiment.views)
    expected = predictor.probabilities(test.images)
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
    assert run(capsys, "predict", workdir, folder / "3", "--top", 2)[1].count("\n") == 3 * int(
        (test.labels == 3).sum()
    )


def test_predictions_of_which_one_fails_are_written_whole_or_not_at_all(trained, capsys, digits_folder, tmp_path):
    shutil.copytree(digits_folder[0], tmp_path / "images")
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
        shutil.copy(next((digits_folder[0] / "3").iterdir()), tmp_path / name)
    code, out, err = run(capsys, "predict", trained[0], tmp_path, "--top", 1)
    assert (code, err) == (0, "") and len(out.splitlines()) == 10 and "猫 😀.png" in out
    for ending in ("csv", "jsonl"):
        path = tmp_path.parent / f"{tmp_path.name}.{ending}"
        assert run(capsys, "predict", trained[0], tmp_path, "--output", path)[0] == 0
        found = {Path(row["file"]).name for row in read_rows(path)}
        assert len(found) == 5 and {'кот, "Barsik".png', "猫 😀.png", "new\nline.png", "$x$.png"} <= found


def test_predict_holds_no_more_for_more_images(trained, digits_folder):
    """All images decoded would take 2,872 x 96 x 96 bytes, 25 MiB."""
    experiment, state = inference.load_trained(trained[0])
    large = dataclasses.replace(experiment, image_shape=(96, 96, 1))
    delivery = inference.open_files(large, [digits_folder[0]] * 8)
    found = inference.predict(large, state, delivery, batch_size=16, on_bad=None)
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
    from flaxcnn.config import DataConfig, ModelConfig, ParallelConfig, TrainConfig

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


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder without splits, and a run on it."""
    from flaxcnn.config import DataConfig, ModelConfig, TrainConfig

    root = tmp_path_factory.mktemp("pets")
    folder = write_folder(root / "pets", 15)
    data = DataConfig(name=f"folder:{folder}", image_size=24)
    loop.fit(
        TrainConfig(batch_size=8, duration="9 steps", model=ModelConfig(name="lenet5"), data=data), root / "run"
    )
    return root / "run", folder


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


def test_the_json_of_a_program_tells_how_a_file_becomes_its_input(pets, trained, capsys, tmp_path):
    files = [tmp_path / name for name in ("wide.png", "exact.png", "gray.png", "tall.png", "turned.jpg")]
    cv2.imwrite(str(files[0]), piece("flower", 1, 60, 90))
    cv2.imwrite(str(files[1]), piece("flower", 2, 24, 24))
    cv2.imwrite(str(files[2]), cv2.cvtColor(piece("flower", 1, 60, 90), cv2.COLOR_RGB2GRAY))
    cv2.imwrite(str(files[3]), piece("flower", 2, 200, 31))
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.fromarray(piece("temple", 3, 60, 90)).save(files[4], exif=exif)
    for workdir in (pets[0], trained[0]):
        program = tmp_path / workdir.parent.name
        assert run(capsys, "export", workdir, program)[0] == 0
        about = json.loads(program.with_name(f"{program.name}.json").read_text())
        images = np.concatenate(
            [read_as_told(file, about["image_shape"], about["preprocessing"]) for file in files]
        )
        found = jax.export.deserialize(bytearray(program.read_bytes())).call(images)
        output = program.with_name(f"{program.name}.jsonl")
        assert run(capsys, "predict", workdir, *files, "--top", 10, "--output", output)[0] == 0
        for row, probabilities in zip(read_rows(output), np.asarray(found), strict=True):
            by_class = dict(zip(about["class_names"], probabilities, strict=True))
            np.testing.assert_allclose([by_class[kind] for kind in row["classes"]], row["probabilities"], atol=0.01)


def test_list_shows_what_matches_a_wildcard_or_a_part(capsys):
    code, out, _ = run(capsys, "list", "resnet*")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert code == 0 and names == list_models("resnet*") and len(names) == 11
    assert "69.758 / 89.078" in out and "8.75 % error on CIFAR-10" in out
    assert run(capsys, "list", "googlenet_p")[1].splitlines()[1].startswith("googlenet_paper  224x224x3")
    assert len(run(capsys, "list")[1].splitlines()) == 1 + len(list_models())


def test_summary_shows_each_layer_and_the_sums(capsys):
    code, out, _ = run(capsys, "summary", "alexnet_2012", "--batch", 4)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    # Two groups: each kernel of conv2 sees 48 of the 96 channels. 27 * 27 positions, 5 * 5 * 48 * 256 each.
    macs = f"{4 * 27 * 27 * 5 * 5 * 48 * 256:,}"
    assert ["Conv", "5x5", "g2", "4x27x27x256", "307,456", macs, "2.8", "MiB", "conv2/conv"] in rows
    assert ["parameters", "60,965,224", "in", "16", "arrays", "(232.6", "MiB)"] in rows
    small = run(capsys, "summary", "resnet50", "--image-size", 64)[1]
    assert "input 1x64x64x3" in small and re.search(
        r"BatchNorm +1x2x2x2048 +4,096 +32.0 KiB +stage4_block3/conv3/norm", small
    )
    assert "running statistics  53,120" in small


def test_prepare_says_what_there_is(capsys, tmp_path):
    code, out, _ = run(capsys, "prepare", "digits", "--data-dir", tmp_path / "data")
    assert code == 0 and out.strip().endswith("train 1,438, test 359")


def test_prepare_makes_smaller_pictures_of_a_folder(capsys, tmp_path):
    folder = write_folder(tmp_path / "Pets", 20)
    for number in range(9):
        for kind in ("flower", "temple", "upside_down"):
            (folder / kind / f"{number}.jpg").write_bytes(b"")
    code, out, _ = run(capsys, "prepare", f"folder:{folder}")
    assert code == 0 and out.endswith(f"folder:{folder} needs no preparation: train 48, test 12\n")
    arguments = ["prepare", f"folder:{folder}", "--resize", 32, "--data-dir", tmp_path / "sets"]
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and re.match(r"error: .*\.jpg: empty file; --bad-images skip [^\n]*\n\Z", err)
    assert not (tmp_path / "sets").exists()
    code, out, err = run(capsys, *arguments, "--bad-images", "skip")
    found, *lines = out.splitlines()
    assert found == f"folder:{folder} holds 3 classes; images: train 48, test 12"
    path = tmp_path / "sets" / "pets_32" / "1.0.0"
    sizes = re.fullmatch(rf"pets_32/1\.0\.0 is prepared in {path}: train (\d+), test (\d+)", lines[0])
    assert code == 0 and err == "" and int(sizes[1]) + int(sizes[2]) == 60 - 27
    assert lines[1] == "left out, because they cannot be read: 27" and lines[-1] == "  and 7 more"
    assert len(lines) == 23 and all(line.endswith(".jpg: empty file") for line in lines[2:-1])
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and out == lines[0].replace("is prepared", "is prepared already") + "\n"


@pytest.mark.parametrize("command", [["-m", "flaxcnn"], ["train.py"]])
def test_a_real_process_exits_with_2_and_no_traceback(command):
    mistake = {"train.py": "--config.batch_size=0"}.get(command[0], "nothing")
    done = subprocess.run([sys.executable, *command, mistake], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command", [["train.py", "--help"], ["-m", "flaxcnn", "list"], ["-m", "flaxcnn", "predict"]]
)
def test_output_that_nobody_reads_ends_a_command_without_a_word(trained, digits_folder, command, unbuffered):
    images = [str(trained[0]), str(digits_folder[0] / "3")] if command[-1] == "predict" else []
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, *command, *images],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.returncode in (1, 141) and done.stderr == ""
