"""The command flaxcnn: mistakes, exit codes, output that nobody reads."""

import os
import re
import subprocess
import sys

import pytest

from flaxcnn.commands.main import main
from tests.conftest import ROOT
from tests.verbs import run


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
        (["evaluate"], "(flaxcnn evaluate --help)"),
        (["evalute", "WORKDIR"], "did you mean evaluate"),
        (["trian"], "did you mean train"),
        (["train", "--config.batch_size=0"], "batch_size is 0; it must be 1 or more"),
        (["train", "--confg=lenet5"], "did you mean --config"),
        (["train", "--config=lenet5"], "did you mean mnist/lenet5, fashion_mnist/lenet5?"),
        (["export", "resnte50", "digits"], "no network has that name; did you mean resnet50"),
        (["export", "lenet5", "digits", "--averaged"], "a network by name has --weights"),
        (["export", "WORKDIR", "digits", "--image-size", "9"], "the run in WORKDIR has its own"),
        (["summry", "lenet5"], "did you mean summary"),
        (["prepare", "digits", "--resize", "9", "--bad-images", "skp"], "did you mean skip"),
        (["summary", "lenet5", "--image-sze", "3"], "did you mean --image-size"),
        (["summary", "lenet5", "--image-sze", "3"], "(flaxcnn summary --help)"),
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
            "the images of mnist have 28x28 pixels: there is nothing to resize",
        ),
        (["prepare", "mnist", "--bad-images", "skip"], "--bad-images goes with --resize"),
        (["prepare", "folder:.", "--resize", "64", "--bad-images", "keep"], "--bad-images: invalid choice: 'keep'"),
        (
            ["prepare", "folder:.", "--resize", "64"],
            "holds no images in class folders",
        ),
        (["prepare", "folder:nowhere", "--resize", "64"], "/nowhere"),
        (["prepare", "folder:nowhere"], "/nowhere"),
        (["prepare", "folder:.", "--from", "."], "--from is for datasets that are downloaded"),
    ],
)
def test_mistakes_are_one_line_and_code_2(trained, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxcnn.data.tfds.preparation.has_tensorflow", lambda: True)
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "old.jsonl").write_text("")
    (tmp_path / "hollow").mkdir()
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, *(str(trained[0]) if word == "WORKDIR" else word for word in arguments))
    message = message.replace("WORKDIR", str(trained[0])) if "in WORKDIR" in message else message
    assert code == 2 and out == ""
    assert re.match(r"error: [^\n]*\n\Z", err) and message in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "command",
    [["-m", "flaxcnn", "nothing"], ["-m", "flaxcnn", "train", "--config.batch_size=0"]]
    + [[file, "--config.batch_size=0"] for file in ("train.py", "-")],
)
def test_a_real_process_exits_with_2_and_no_traceback(command):
    with (ROOT / "train.py").open() as program:  # which Python reads where the file is called -
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdin=program, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


VERBS = ("train", "evaluate", "predict", "export", "prepare", "list", "summary")


@pytest.mark.parametrize("program", ["flaxcnn", "python -m flaxcnn"])
@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_help_names_the_program_and_what_it_takes(capsys, program, verb):
    with pytest.raises(SystemExit) as exited:
        main([*verb, "--help"], program)
    out = capsys.readouterr().out
    assert exited.value.code == 0 and out.startswith(f"usage: {' '.join((program, *verb))} ")
    if not verb:
        assert re.findall(r"^    (\w+) ", out, re.MULTILINE) == list(VERBS)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command", [["train.py", "--help"], ["-m", "flaxcnn", "list"], ["-m", "flaxcnn", "predict"]]
)
def test_output_that_nobody_reads_ends_a_command_without_a_word(trained, digits_folder, command, unbuffered):
    images = [str(trained[0]), str(digits_folder / "3")] if command[-1] == "predict" else []
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
