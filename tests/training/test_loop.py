"""The loop: what it leaves behind, what it refuses, how often it compiles, and that it never waits in a step."""

import concurrent.futures
import copy
import io
import json
import logging
import os
import re
import signal
import sys

import jax
import numpy as np
import pytest
import rich.console
from ml_collections import ConfigDict

from flaxcnn import UserError
from flaxcnn.config import to_dict
from flaxcnn.data.loading.loader import open_loaders
from flaxcnn.parallel.memory import memory_for_data
from flaxcnn.runs import workdir as workdir_lib
from flaxcnn.runs.checkpoint import Checkpoints
from flaxcnn.runs.recorder import read_metrics
from flaxcnn.terminal import printable
from flaxcnn.trained.evaluation import evaluate
from flaxcnn.trained.run import load_trained
from flaxcnn.training import compiled_steps, loop, plan
from flaxcnn.training.evaluation import Evaluation
from flaxcnn.training.setup import setup
from tests.checkpoints import saved_state
from tests.images import write_folder

DATA = {"class_names": ["a", "b"], "image_shape": [8, 8, 1], "fingerprint": "f"}
TIMES = ("images_per_second", "waiting_for_data")


@pytest.fixture
def console():
    return rich.console.Console(file=io.StringIO(), width=100)


def test_a_run_leaves_its_numbers_and_pictures(config, tmp_path, console):
    workdir = tmp_path / "run"
    result = loop.fit(config, workdir, console=console)
    assert result.count == 359
    names = {path.name for path in workdir.iterdir()}
    assert {"run.json", "checkpoints", "metrics.jsonl", "results.json"} <= names
    assert {"learning_curves.png", "confusion_matrix.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    for name in ("learning_curves.png", "confusion_matrix.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")

    run = json.loads((workdir / "run.json").read_text())
    assert run["config"]["batch_size"] == 64 and run["environment"]["packages"]["jax"] == jax.__version__
    results = json.loads((workdir / "results.json").read_text())
    assert results["test"]["accuracy"] == result.accuracy and results["step"] == 44
    assert np.trace(results["confusion"]) / 359 == result.accuracy

    records = read_metrics(workdir)
    assert [(r["kind"], r["step"]) for r in records] == [
        (kind, step) for step in (22, 44) for kind in ("interval", "test", "epoch")
    ]
    assert [r["count"] for r in records if r["kind"] == "test"] == [359, 359]
    text = console.file.getvalue()
    assert re.search(r"epoch 2/2  loss \d\.\d{4}  accuracy 0\.\d{4}  test accuracy 0\.\d{4}  [\d,]+ images/s", text)
    assert f"test accuracy {result.accuracy:.4f}" in text and "\x1b" not in text

    experiment, state = load_trained(workdir)
    assert evaluate(experiment, state).accuracy == result.accuracy


def test_a_figure_that_fails_is_a_line_after_the_results(config, tmp_path, console, monkeypatch):
    seen = []

    def fail(*arguments, **keywords):
        seen.append((json.loads((tmp_path / "run" / "results.json").read_text()), console.file.getvalue()))
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr("flaxcnn.inspect.plots.plot_confusion_matrix", fail)
    config.duration = "1 steps"
    result = loop.fit(config, tmp_path / "run", console=console)
    ((results, printed),) = seen
    assert results["test"]["accuracy"] == result.accuracy and f"test accuracy {result.accuracy:.4f}" in printed
    assert [line for line in console.file.getvalue().splitlines() if line.startswith("warning: ")] == [
        "warning: confusion_matrix.png could not be drawn: no font"
    ]
    assert (tmp_path / "run" / "learning_curves.png").exists()
    monkeypatch.setitem(sys.modules, "flaxcnn.inspect.plots", None)  # as if matplotlib were missing
    monkeypatch.delattr("flaxcnn.inspect.plots")
    assert loop.fit(config, tmp_path / "run", console=console).scalars == result.scalars


def test_classes_may_be_called_anything(config, tmp_path, console):
    folder, names = write_folder(tmp_path / "$x$", 10), ("$\\frac$", "new\nline {", os.fsdecode(b"\xff_^"))
    for before, name in zip(sorted(folder.iterdir()), names, strict=True):
        before.rename(folder / name)
    config.data.name, config.data.data_dir, config.duration = f"folder:{folder}", None, "1 steps"
    config.batch_size, config.model.options = 8, ConfigDict()
    for _ in range(2):  # the second finds the run complete
        loop.fit(config, tmp_path / "run", console=console)
        assert set(json.loads((tmp_path / "run" / "results.json").read_text())["class_accuracy"]) == set(
            map(printable, names)
        )
        for figure in ("learning_curves.png", "confusion_matrix.png"):
            assert (tmp_path / "run" / figure).read_bytes().startswith(b"\x89PNG")
            (tmp_path / "run" / figure).unlink()
    assert "warning" not in console.file.getvalue() and "0 $\\frac$ " in console.file.getvalue()


@pytest.mark.parametrize("precision", ["x32", pytest.param("x64", marks=pytest.mark.slow)])
def test_the_step_compiles_once_also_after_a_restart(
    config, tmp_path, console, monkeypatch, caplog, precision, request
):
    if precision == "x64":
        request.getfixturevalue("x64")
    traces = []

    def counted(*arguments, **keywords):
        train_step = make(*arguments, **keywords)

        def step(*arguments, **keywords):
            traces.append(1)
            return train_step(*arguments, **keywords)

        return step

    make = compiled_steps.make_train_step
    monkeypatch.setattr(compiled_steps, "make_train_step", counted)
    config.logging.every, config.evaluation.every, config.checkpoint.every = "5 steps", "7 steps", "9 steps"
    for duration in ("1.5 epochs", "3 epochs"):
        config.duration = duration
        traces.clear(), caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            loop.fit(config, tmp_path / "run", console=console)
        compilations = [r for r in caplog.messages if re.match(r"Finished XLA compilation of .*train_batch", r)]
        assert len(traces) == 1 and len(compilations) == 1


class Host:
    """A leaf in place of a device array that notes each time the host asks for its value."""

    reads, dtype = 0, np.dtype("float32")

    def _read(self):
        Host.reads += 1
        return np.zeros(())

    def __array__(self, dtype=None, copy=None):
        return self._read()

    def __float__(self):
        return float(self._read())

    def __int__(self):
        return int(self._read())

    __index__ = __int__

    def __bool__(self):
        return bool(self._read())

    def item(self):
        return self._read().item()

    def block_until_ready(self):
        self._read()
        return self


class Steps:
    """Steps that return at once, with leaves that note when they are read; the last ones are real arrays."""

    steps_per_call = 1

    def __init__(self, loop_state, count, look):
        self.loop_state, self.left, self.look = loop_state, count, look

    def __call__(self, loop_state, batch, *, step):
        self.left -= 1
        if not self.left:
            return self.loop_state
        loop_state = jax.tree.map(lambda _: Host(), self.loop_state)
        self.look(loop_state)
        return loop_state


class NoCheckpoints:
    def save(self, *_):
        pass


def reads_of_a_run(config, workdir, count, look):
    """Runs the loop with steps that return at once, and returns how often it asked for a value."""
    config.batch_size, config.duration = 16, f"{count} steps"
    config.logging.every = config.evaluation.every = config.checkpoint.every = "1000 steps"
    run = setup(config, workdir)
    workdir.mkdir()
    console = rich.console.Console(file=io.StringIO())
    evaluation = Evaluation(1, 0.0, 0.5, 0.5, None)
    loop_state = run.experiment.create_loop_state(run.experiment.optimizer())
    with open_loaders(config.data, run.strategy, run.datasets, run.batch_sizes, memory_for_data()) as loaders:
        steps = Steps(loop_state, count, look)
        Host.reads = 0
        loop.train(
            run,
            steps,
            loop_state,
            loaders["train"],
            lambda state: {"test": evaluation},
            NoCheckpoints(),
            console,
            0.0,
        )
        return Host.reads


def test_no_step_waits_for_the_device(config, tmp_path):
    # 1438 // 16 = 89 steps an epoch: both runs end within the first, so both have the same records to write.
    short, long = (
        reads_of_a_run(copy.deepcopy(config), tmp_path / str(count), count, lambda loop_state: None)
        for count in (8, 88)
    )
    assert short == long > 0


@pytest.mark.parametrize(
    "look",
    [
        lambda loop_state: float(loop_state.interval["loss"]),
        lambda loop_state: int(loop_state.state.step),
        lambda loop_state: np.asarray(loop_state.state.params["conv1"]["conv"]["bias"]),
        lambda loop_state: jax.device_get(loop_state.epoch),
        lambda loop_state: loop_state.state.step.block_until_ready(),
    ],
)
def test_the_measurement_shows_a_wait_where_there_is_one(config, tmp_path, look):
    short, long = (reads_of_a_run(copy.deepcopy(config), tmp_path / str(count), count, look) for count in (8, 88))
    assert long - short >= 80


@pytest.mark.slow
def test_divergence_in_the_last_step_is_not_saved(config, tmp_path, console):
    config.duration, config.optimizer.learning_rate = "1 steps", 1e39  # infinite in float32
    with pytest.raises(UserError, match="training diverged by step 1"):
        loop.fit(config, tmp_path / "run", console=console)
    assert not (tmp_path / "run" / "results.json").exists()
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == []


def test_a_finished_run_is_evaluated_again_and_left_alone(config, tmp_path, console):
    first = loop.fit(config, tmp_path / "run", console=console)
    files = [tmp_path / "run" / name for name in ("metrics.jsonl", "run.json")]
    before = [path.read_bytes() for path in files]
    config.optimizer.learning_rate = 0.5
    second = loop.fit(config, tmp_path / "run", console=console)
    assert second.accuracy == first.accuracy and "is complete" in console.file.getvalue()
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.model, "name", "lenet5_1998"), "model.name 'lenet5', not 'lenet5_1998'"),
        (lambda c: setattr(c.data, "image_size", 14), "data.image_size 12, not 14"),
        (lambda c: setattr(c, "seed", 1), "seed 0, not 1"),
        (lambda c: c.model.options.update(norm="layer_norm"), "model.options.norm 'batch_norm', not 'layer_norm'"),
        (lambda c: setattr(c.schedule, "name", "plateau"), "schedule.name 'constant', not 'plateau'"),
    ],
)
def test_a_folder_of_another_experiment_is_refused_and_untouched(config, tmp_path, console, change, message):
    config.duration = "3 steps"
    loop.fit(config, tmp_path / "run", console=console)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    change(config)
    if config.model.name == "lenet5_1998":
        config.data.image_size, config.model.options = 32, ConfigDict()
    with pytest.raises(UserError, match=r"holds another experiment.*--workdir") as raised:
        loop.fit(config, tmp_path / "run", console=console)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_may_live_in_a_thread(config, tmp_path, console):
    config.duration = "3 steps"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(loop.fit, config, tmp_path / "run", console=console).result().count == 359


def test_what_may_change_is_said_and_taken(config, tmp_path, console):
    config.duration = "3 steps"
    loop.fit(config, tmp_path / "run", console=console)
    config.duration, config.optimizer.learning_rate = "5 steps", 0.01
    loop.fit(config, tmp_path / "run", console=console)
    text = console.file.getvalue()
    assert "changed since the checkpoint: optimizer.learning_rate: 0.05 -> 0.01" in text
    assert "after step 3 of 5" in text
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert recorded["duration"] == "5 steps" and recorded["optimizer"]["learning_rate"] == 0.01


@pytest.mark.parametrize("value", [(1, 2), [1, 2], ((1, 2), (3, 4)), [(1, 2), [3, 4]]])
def test_tuples_and_lists_are_the_same_experiment(config, tmp_path, value):
    config.model.options.depths = value
    workdir_lib.write_json(tmp_path / "run.json", {"config": to_dict(config), "data": DATA})
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    for same in (value, tuple(value), list(value), json.loads(json.dumps(value))):
        config.model.options.depths = same
        assert workdir_lib.check_usable(tmp_path, config, DATA) == []
    config.model.options.depths = (1, 3)
    with pytest.raises(UserError, match="holds another experiment"):
        workdir_lib.check_usable(tmp_path, config, DATA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.model, "name", "lenet6"), "unknown model 'lenet6'; did you mean lenet5"),
        (lambda c: setattr(c.data, "name", "digitz"), "unknown data set 'digitz'; did you mean digits"),
        (lambda c: setattr(c.data, "name", "cifar10"), "cifar10 is not prepared in"),
        (lambda c: setattr(c, "batch_size", 0), "batch_size is 0"),
        (lambda c: setattr(c, "batch_size", 2000), "batch_size is 2000; split 'train' of digits has only 1438"),
        (lambda c: setattr(c.model, "num_classes", 7), "model.num_classes is 7, but digits has 10 classes"),
        (lambda c: setattr(c.data, "image_size", 8), "data.image_size is 8; lenet5 takes images of at least 12x12"),
        (lambda c: setattr(c.data, "image_size", None), "digits are 8x8; set data.image_size to 12 or more"),
        (lambda c: setattr(c.data, "mean", (0.1, 0.2)), "data.mean has 2 values.*write 1"),
        (lambda c: c.data.__dict__.update(resize="pad", name="shapes8"), "unknown data set 'shapes8'"),
        (lambda c: c.model.options.update(bn_axis_name="x"), "bn_axis_name is set by parallel.batch_norm"),
        (lambda c: setattr(c, "duration", "1e300 epochs"), "must be below"),
        (lambda c: setattr(c, "seed", 2**63), "must be below"),
        (lambda c: setattr(c.model, "dtype", "float64"), "only with JAX_ENABLE_X64=1"),
        (lambda c: c.model.options.update(nrom=1), "has no field 'nrom'; did you mean norm"),
        (lambda c: c.model.options.update(num_classes=3), "is written model.num_classes"),
        (
            lambda c: setattr(c.evaluation, "scales", (12, 16)),
            "shows lenet5 16x16 pixels; trained on 12x12, it takes",
        ),
        (
            lambda c: setattr(c.augment, "lighting", 0.1),
            "lighting is for color, and the images of digits are gray",
        ),
    ],
)
def test_mistakes_leave_nothing_behind(config, tmp_path, console, change, message):
    change(config)
    with pytest.raises(UserError, match=message) as raised:
        loop.fit(config, tmp_path / "a" / "run", console=console)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run", "GS:/bucket/run"])
def test_addresses_are_refused_before_anything_is_made(config, tmp_path, console, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is an address") as raised:
        loop.fit(config, address, console=console)
    assert "\n" not in str(raised.value)
    config.data.data_dir = address
    with pytest.raises(UserError, match="is an address"):
        loop.fit(config, tmp_path / "run", console=console)
    config.data.name, config.data.data_dir = f"folder:{address}", None
    with pytest.raises(UserError, match="is an address"):
        loop.fit(config, tmp_path / "run", console=console)
    assert not list(tmp_path.iterdir())


def test_the_home_directory_may_be_written_as_a_tilde(config, tmp_path, console, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sets").symlink_to(config.data.data_dir)
    config.duration, config.data.data_dir = "1 steps", "~/sets"
    loop.fit(config, "~/runs/a", console=console)
    assert (tmp_path / "runs" / "a" / "results.json").exists()
    assert load_trained("~/runs/a")[0].class_names == tuple("0123456789")


@pytest.mark.parametrize("parent", ["file", "forbidden"])
def test_a_folder_that_cannot_be_written_is_refused(config, tmp_path, console, monkeypatch, parent):
    (tmp_path / "file").write_text("")
    (tmp_path / "forbidden").mkdir()
    access = os.access  # root may write anywhere, so the answer for one folder is given here
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "forbidden" and access(path, mode))
    with pytest.raises(UserError, match=r"work directory .*run cannot be") as raised:
        loop.fit(config, tmp_path / parent / "run", console=console)
    assert "\n" not in str(raised.value)


def test_divergence_ends_with_one_line_and_the_last_good_checkpoint(config, tmp_path, console):
    config.duration = "1 epochs"
    loop.fit(config, tmp_path / "run", console=console)
    config.duration, config.optimizer.learning_rate = "3 epochs", 1e30
    with pytest.raises(UserError, match=r"training diverged by step 44: .*lower optimizer.learning_rate"):
        loop.fit(config, tmp_path / "run", console=console)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [22]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_next_start_continues_with_the_next_batch(
    config, tmp_path, console, monkeypatch, number
):
    expected = loop.fit(config, tmp_path / "whole", console=console)
    batch, handler = plan.training_indices, signal.getsignal(number)

    def interrupted(seed, epoch, step, **sizes):
        if (epoch, step) == (1, 9):
            os.kill(os.getpid(), number)
        return batch(seed, epoch, step, **sizes)

    with monkeypatch.context() as patched:
        patched.setattr(plan, "training_indices", interrupted)
        with pytest.raises(loop.Interrupted, match="saved after step 32 of 44") as raised:
            loop.fit(config, tmp_path / "run", console=console)
        assert raised.value.exit_code == 128 + number
    assert signal.getsignal(number) == handler

    result = loop.fit(config, tmp_path / "run", console=console)
    assert result.scalars == expected.scalars
    without_rates = [
        [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(tmp_path / name)]
        for name in ("whole", "run")
    ]
    assert without_rates[0] == without_rates[1]


def indices_seen(monkeypatch):
    """The examples that each step sees, as the loop asks for them."""
    seen = []
    batch = plan.training_indices

    def noted(seed, epoch, step, **sizes):
        indices = batch(seed, epoch, step, **sizes)
        seen.append(tuple(indices))
        return indices

    monkeypatch.setattr(plan, "training_indices", noted)
    return seen


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (("pmap", "jit"), ("jit", "pmap"), ("shard_map", "jit"))
    ],
)
def test_a_checkpoint_goes_on_under_another_strategy(config, tmp_path, console, monkeypatch, first, second):
    """On eight devices and on one: the same examples in the same order, to the same numbers."""
    seen = indices_seen(monkeypatch)
    expected = loop.fit(config, tmp_path / "whole", console=console)
    whole = seen[:]
    del seen[:]
    for strategy, duration in ((first, "20 steps"), (second, "2 epochs")):
        config.parallel.strategy, config.duration = strategy, duration
        found = loop.fit(config, tmp_path / "run", console=console)
    assert seen == whole
    (_, state), (_, other) = load_trained(tmp_path / "run"), load_trained(tmp_path / "whole")
    for leaf, twin in zip(jax.tree.leaves(state.variables), jax.tree.leaves(other.variables), strict=True):
        np.testing.assert_allclose(leaf, twin, rtol=1e-3, atol=1e-4)  # float32, 44 steps
    assert found.loss == pytest.approx(expected.loss, rel=1e-3) and found.count == 359
    assert f"parallel.strategy: '{first}' -> '{second}'" in console.file.getvalue()


def test_devices_that_cannot_share_a_batch_are_said(config, tmp_path, console):
    config.parallel.strategy, config.batch_size = "shard_map", 30
    with pytest.raises(UserError, match="batch_size is 30, which 8 devices cannot divide evenly; write 24 or 32"):
        loop.fit(config, tmp_path / "run", console=console)
    config.batch_size, config.parallel.micro_batches = 32, 3
    with pytest.raises(UserError, match=r"micro_batches is 3, .* 4 images of a device.*; write a divisor of 4"):
        loop.fit(config, tmp_path / "run", console=console)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_averages_are_evaluated_beside_the_live_parameters(config, tmp_path, console):
    config.optimizer.ema_decay, config.optimizer.learning_rate = 0.9, 0.2
    live = loop.fit(config, tmp_path / "run", console=console)
    kinds = [record["kind"] for record in read_metrics(tmp_path / "run")]
    assert kinds == ["interval", "test", "averaged", "epoch"] * 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    experiment, state = load_trained(tmp_path / "run", averaged=True)
    assert evaluate(experiment, state).scalars == pytest.approx(results["averaged"], rel=1e-5)
    assert results["test"]["loss"] == live.loss != results["averaged"]["loss"]
    assert re.search(r"test accuracy 0\.\d{4}  averaged accuracy 0\.\d{4}", console.file.getvalue())


def test_without_averages_there_are_none_to_load(config, tmp_path, console):
    config.duration = "1 steps"
    loop.fit(config, tmp_path / "run", console=console)
    with pytest.raises(UserError, match=r"holds no averaged parameters; train with --config\.optimizer\.ema_decay"):
        load_trained(tmp_path / "run", averaged=True)


@pytest.mark.slow
def test_float16_trains_with_a_loss_scale(config, tmp_path, console):
    config.duration = "1 epochs"
    expected = loop.fit(config, tmp_path / "float32", console=console)
    config.model.dtype = "float16"
    result = loop.fit(config, tmp_path / "run", console=console)
    state = saved_state(tmp_path / "run")
    assert result.loss == pytest.approx(expected.loss, rel=0.05) and float(state.loss_scale.scale) > 1
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {np.dtype("float32")}
    skipped = sum(record["skipped"] for record in read_metrics(tmp_path / "run") if record["kind"] == "epoch")
    assert int(state.loss_scale.good_steps) <= 22 - skipped


@pytest.mark.slow
def test_memory_that_does_not_suffice_is_said_before_anything_is_written(config, tmp_path, console, monkeypatch):
    needed = iter([8000, 5000, 3000])  # of 1, 2 and 4 micro-batches
    monkeypatch.setattr(compiled_steps.memory, "program_bytes", lambda program: next(needed) << 20)
    monkeypatch.setattr(compiled_steps.memory, "device_bytes", lambda device: 4000 << 20)
    with pytest.raises(
        UserError, match=r"takes 7\.8 GiB .*has 3\.9 GiB; --config\.parallel\.micro_batches=4 takes 2\.9"
    ):
        loop.fit(config, tmp_path / "run", console=console)
    assert not list(tmp_path.iterdir())


def test_a_range_of_steps_is_profiled(config, tmp_path, console):
    config.duration, config.logging.profile = "6 steps", (2, 4)
    loop.fit(config, tmp_path / "run", console=console)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert "profile of steps (2, 4) in" in console.file.getvalue()


@pytest.mark.slow
def test_a_run_says_how_it_runs(config, tmp_path, console):
    config.duration, config.parallel.strategy, config.parallel.micro_batches = "1 steps", "shard_map", 2
    loop.fit(config, tmp_path / "run", console=console)
    how = r"shard_map on 8 cpu devices, 8 images each in 2 micro-batches"
    cost = r"; convolutions by [^;]+; compiled in [\d.]+ s; a step takes [\d.]+ MiB of a device's [\d.]+ GiB"
    assert re.search(how + cost, console.file.getvalue())
    execution = json.loads((tmp_path / "run" / "run.json").read_text())["execution"]
    assert (execution["devices"], execution["micro_batches"], execution["processes"]) == (8, 2, 1)


@pytest.mark.slow
def test_plateau_goes_on_after_a_restart_as_if_nothing_had_happened(config, tmp_path, console):
    """With no better accuracy than that of the first evaluation the rate falls at every second."""
    config.schedule.name, config.schedule.patience, config.duration = "plateau", 2, "10 steps"
    config.evaluation.every = config.checkpoint.every = config.logging.every = "1 steps"
    config.optimizer.learning_rate = 1e-6
    loop.fit(config, tmp_path / "whole", console=console)
    for duration in ("4 steps", "10 steps"):
        config.duration = duration
        loop.fit(config, tmp_path / "run", console=console)
    whole, run = (
        [r["learning_rate"] for r in read_metrics(tmp_path / name) if r["kind"] == "interval"]
        for name in ("whole", "run")
    )
    assert run == whole
    # Step 1 is evaluated first; steps 2 and 3 are no better; so step 4 goes at a tenth, and so on.
    np.testing.assert_allclose(whole, np.repeat([1e-6, 1e-7, 1e-8, 1e-9, 1e-10], [3, 2, 2, 2, 1]), rtol=1e-5)
