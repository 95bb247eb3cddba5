"""The flags of `flaxcnn train` and train.py."""

import re

import pytest

from flaxcnn import UserError
from flaxcnn.commands.train_flags import parse
from flaxcnn.config.leaves import get_leaf, leaf_meaning, leaf_paths
from tests.conftest import ROOT

DEFAULT = ROOT / "configs" / "digits_lenet5.py"


def run(*arguments, default=DEFAULT):
    command = parse(["train.py", *arguments], default)
    return command.config, command.workdir


def test_leaves_are_overridden_and_keep_their_types():
    config, workdir = run(
        "--config.optimizer.learning_rate=3",
        "--config.batch_size",
        "7",
        "--config.optimizer.nesterov",
        "--config.data.mean=(0.1, 0.2)",
        "--config.duration=5 steps",
        "--config.optimizer.clip_norm=1.5",
        "--config.schedule.milestones=('1 epochs', '2 epochs')",
        "--workdir=/somewhere",
    )
    assert config.optimizer.learning_rate == 3.0 and isinstance(config.optimizer.learning_rate, float)
    assert (config.batch_size, config.optimizer.nesterov, config.data.mean) == (7, True, (0.1, 0.2))
    assert (config.duration, config.optimizer.clip_norm) == ("5 steps", 1.5)
    assert config.schedule.milestones == ("1 epochs", "2 epochs")
    assert str(workdir) == "/somewhere"


def test_nothing_given_takes_the_default_and_names_the_folder_after_it():
    config, workdir = run()
    assert config.data.name == "digits" and str(workdir) == "runs/digits_lenet5"


def test_a_named_file_is_taken_and_names_the_folder():
    config, workdir = run(f"--config={ROOT}/configs/fashion_mnist/lenet5.py", "--config.batch_size=9")
    assert (config.data.name, config.batch_size) == ("fashion_mnist", 9)
    assert str(workdir) == "runs/fashion_mnist_lenet5"


@pytest.mark.parametrize(
    "recipe", ["fashion_mnist/lenet5", "fashion_mnist/lenet5.py", "configs/fashion_mnist/lenet5.py"]
)
def test_a_recipe_is_found_by_name_from_any_folder(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in ([f"--config={recipe}"], ["--config", recipe]):
        config, workdir = run(*arguments)
        assert (config.data.name, str(workdir)) == ("fashion_mnist", "runs/fashion_mnist_lenet5")


def test_a_file_comes_before_a_recipe_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "lenet5.py").write_text(DEFAULT.read_text())
    assert run("--config=mnist/lenet5.py")[0].data.name == "digits"
    assert run("--config=mnist/lenet5")[0].data.name == "mnist"


def test_model_options_take_what_the_model_has_and_can_be_emptied():
    config, _ = run("--config.model.options.norm=batch_norm", "--config.model.options.activation=relu")
    assert config.model.options.to_dict() == {"activation": "relu", "norm": "batch_norm"}
    config, _ = run("--config.model.options={}")
    assert config.model.options.to_dict() == {}


def test_a_leaf_that_may_be_unset_can_be():
    config, _ = run("--config.data.image_size=None", "--config.optimizer.clip_norm=none", "--config.batch_size=7")
    assert (config.data.image_size, config.optimizer.clip_norm, config.batch_size) == (None, None, 7)


def test_the_last_of_two_files_counts(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(DEFAULT.read_text())
    config, workdir = run(f"--config={ROOT}/configs/fashion_mnist/lenet5.py", f"--config={path}")
    assert (config.data.name, str(workdir)) == ("digits", "runs/mine")


SIDE = "config.evaluation.shorter_side"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([f"--{SIDE}=None", f"--{SIDE}=128"], 128),
        ([f"--{SIDE}=none", f"-{SIDE}", "128"], 128),
        ([f"--{SIDE}", "None", f"--{SIDE}=128"], 128),
        ([f"--{SIDE}=128", f"--{SIDE}=None"], None),
        ([f"--{SIDE}=128", f"--{SIDE}", "none"], None),
        ([f"--{SIDE}", "64", f"-{SIDE}=None", f"--{SIDE}=128"], 128),
        ([f"--{SIDE}", "None"], None),
    ],
)
def test_the_last_of_two_values_counts_also_where_one_unsets(arguments, expected):
    config, _ = run("--config.data.image_size=32", *arguments, "--config.batch_size=7")
    assert (config.evaluation.shorter_side, config.batch_size) == (expected, 7)


@pytest.mark.parametrize(
    ("arguments", "leaf", "expected"),
    [
        (["--config.optimizer.nesterov", "--noconfig.optimizer.nesterov"], "optimizer.nesterov", False),
        (["--noconfig.optimizer.nesterov", "--config.optimizer.nesterov=true"], "optimizer.nesterov", True),
        (["--config.data.mean=(0.1,)", "--config.data.mean=(0.2,)"], "data.mean", (0.2,)),
        (["--config.data.mean", "(0.1,)", "--config.data.mean=0.2"], "data.mean", (0.2,)),
        (["--config.model.options.norm=x", "--config.model.options={}"], "model.options", {}),
        (["--config.model.options={}", "--config.model.options.norm=x"], "model.options", {"norm": "x"}),
        (["--config.model.options.norm=None", "--config.model.options.norm=x"], "model.options.norm", "x"),
        (["--config.batch_size=7", f"--config={DEFAULT}"], "batch_size", 7),
    ],
)
def test_the_last_counts_of_every_kind_of_key(arguments, leaf, expected):
    found = get_leaf(run(*arguments)[0], leaf)
    assert (found.to_dict() if leaf == "model.options" else found) == expected


def test_a_file_of_flags_stands_for_what_it_holds(tmp_path):
    (tmp_path / "flags").write_text(f"--{SIDE}=128\n--config.batch_size=7\n")
    config, _ = run(f"--{SIDE}=64", f"--flagfile={tmp_path / 'flags'}", f"--{SIDE}=None")
    assert (config.evaluation.shorter_side, config.batch_size) == (None, 7)


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(DEFAULT.read_text())
    config, workdir = run("--config=~/mine.py", "--workdir=~/runs/a")
    assert config.data.name == "digits" and workdir == tmp_path / "runs" / "a"
    assert run("--config", "~/mine.py")[1].name == "mine"


def test_one_command_line_does_not_change_the_next():
    run("--config.batch_size=7")
    assert run()[0].batch_size != 7


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.lr=3", "unknown configuration key 'optimizer.lr'; did you mean"),
        ("--config.learning_rate=3", "'learning_rate'; did you mean optimizer.learning_rate"),
        ("--config.optimizer=3", "'optimizer'; did you mean optimizer.learning_rate"),
        ("--config.batch_size=abc", "batch_size takes a whole number, got 'abc'"),
        ("--config.batch_size=1.5", "batch_size takes a whole number, got '1.5'"),
        ("--config.optimizer.nesterov=perhaps", "optimizer.nesterov takes true or false, got 'perhaps'"),
        ("--config.batch_size", "Missing value for flag --config.batch_size"),
        ("--config=nowhere.py", "there is no configuration file nowhere.py"),
        ("--config=fashion_mnist/lenet", "no recipe of that name; did you mean fashion_mnist/lenet5"),
        ("--confg=x", "unknown flag --confg; did you mean --config"),
        ("--work-dir=x", "did you mean --workdir"),
        ("--optimizer.learning_rate=0.1", r"did you mean --config\.optimizer\.learning_rate\?"),
        ("--learning_rate=0.1", r"did you mean --config\.optimizer\.learning_rate\?"),
        ("--lr=0.1", r"did you mean --config\.optimizer\.learning_rate\?"),
        ("--optim.lr=0.1", r"did you mean --config\.optimizer\.learning_rate\?"),
        ("--batch-size=3", r"did you mean --config\.batch_size, --config\.evaluation\.batch_size\?"),
        ("--data_dir=x", r"did you mean --config\.data\.data_dir\?"),
        ("--model=resnet18", r"did you mean --config\.model\.name"),
        ("--model.options.norm=x", r"did you mean --config\.model\.options\.norm\?"),
        ("--epochs=3", r"did you mean --config\.duration\?"),
        ("optimizer.learning_rate=0.1", r"did you mean --config\.optimizer\.learning_rate\?"),
        ("lr=0.1", r"did you mean --config\.optimizer\.learning_rate\?"),
        ("config.seed=1", r"did you mean --config\.seed\?"),
        ("--config", "--config is empty"),
        ("--config=", "--config is empty"),
        ("--noconfig.batch_size", "batch_size takes a whole number"),
        ("--flagfile=nowhere", "No such file"),
        ("--workdir=gs://bucket/run", "gs://bucket/run is an address"),
        ("--workdir=s3://bucket/run", "s3://bucket/run is an address"),
        ("--workdir=file:///tmp/run", "file:///tmp/run is an address"),
        ("--workdir=gs:/bucket/run", "gs:/bucket/run is an address"),
        ("--config=hdfs://host/config.py", "hdfs://host/config.py is an address"),
        ("stray", "unexpected argument 'stray'"),
        ("--workdir=", "--workdir is empty"),
        ("--config.batch_size=None", "batch_size takes a whole number, got 'None'"),
        ("--config.model.options.norm.x=3", "norm"),
    ],
)
def test_mistakes_are_one_line(argument, message):
    with pytest.raises(UserError, match=message) as raised:
        run(argument)
    assert "\n" not in str(raised.value)


def test_help_lists_every_key_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as exited:
        run("--help")
    assert exited.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: train.py [")
    assert "--config.optimizer.learning_rate=0.05" in text and "peak learning rate" in text
    for path in leaf_paths(run()[0]):
        (line,) = re.findall(rf"  --config\.{path}=.*", text)
        assert line.endswith(leaf_meaning(run()[0], path))
    assert "fashion_mnist/" in text and " lenet5_batch_norm," in text
