"""python -m flaxcnn, in this process where that is enough."""

import json
import re
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from flaxcnn import list_models
from flaxcnn.cli import main
from flaxcnn.data import datasets
from flaxcnn.data.delivery import Delivery
from flaxcnn.data.sources import open_source
from flaxcnn.training import loop
from tests.conftest import ROOT
from tests.pictures import write_folder


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
            "cannot read txt.png: No such file or directory; did you mean text.png",
        ),
        (["predict", "WORKDIR", "."], "cannot read .: Is a directory"),
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
        (["evalute", "WORKDIR"], "invalid choice: 'evalute'"),
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
            "holds no pictures; it takes a folder of pictures for each class",
        ),
        (["prepare", "folder:nowhere", "--resize", "64"], "there is no folder nowhere"),
        (["prepare", "folder:nowhere"], "there is no folder nowhere"),
        (["prepare", "folder:.", "--from", "."], "--from is for data sets that are downloaded"),
    ],
)
def test_mistakes_are_one_line_and_code_2(trained, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxcnn.data.prepare.has_tensorflow", lambda: True)
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, *(str(trained[0]) if word == "WORKDIR" else word for word in arguments))
    assert code == 2 and out == ""
    assert re.match(r"error: [^\n]*\n\Z", err) and message in err
    assert sorted(tmp_path.iterdir()) == before


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
    assert code == 0 and out == f"folder:{folder} needs no preparation: train 48, test 12\n"
    arguments = ["prepare", f"folder:{folder}", "--resize", 32, "--data-dir", tmp_path / "sets"]
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and re.match(r"error: .*\.jpg: empty file; --bad-images skip [^\n]*\n\Z", err)
    assert not (tmp_path / "sets").exists()
    code, out, err = run(capsys, *arguments, "--bad-images", "skip")
    lines = out.splitlines()
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
