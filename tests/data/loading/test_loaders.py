"""Batches on the devices: from memory and from a stream, with pictures that cannot be read, and over a restart."""

import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import rich.console
from ml_collections import ConfigDict

from flaxcnn import UserError
from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from flaxcnn.data.loading import loader
from flaxcnn.data.loading.loader import open_loaders
from flaxcnn.data.loading.prefetch import Prefetcher
from flaxcnn.data.loading.sampler import BatchIndices
from flaxcnn.parallel import memory, processes
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.runs.recorder import read_metrics
from flaxcnn.training import loop
from flaxcnn.training.experiment import make_experiment
from flaxcnn.training.setup import open_dataset
from flaxcnn.training.train_step import make_train_step
from tests.checkpoints import saved_arrays
from tests.conftest import ROOT
from tests.data.decoding.test_images import JPEG, OTHERS, REFUSED, claiming
from tests.images import jpeg, piece, write_folder

PIECE = piece("flower", 0, 40, 50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes, 24 pictures to train on and 6 to test on."""
    return write_folder(tmp_path_factory.mktemp("pictures") / "three", 10)


@pytest.fixture
def console():
    return rich.console.Console(file=io.StringIO(), width=100)


def streamed(folder, **data):
    """A run of seconds on random crops of the pictures."""
    model = ModelConfig(name="lenet5")
    model.options.norm = "batch_norm"
    return TrainConfig(
        batch_size=8,
        duration="4 epochs",
        model=model,
        data=DataConfig(name=f"folder:{folder}", image_size=16, crop="random_resized", workers=2, **data),
        augment=AugmentConfig(flip="random"),
        optimizer=OptimizerConfig(learning_rate=0.05),
        parallel=ParallelConfig(strategy="jit"),
    )


def outcome(workdir):
    """What a run ends with, but for its speed."""
    times = ("images_per_second", "waiting_for_data")
    records = [{k: v for k, v in record.items() if k not in times} for record in read_metrics(workdir)]
    return saved_arrays(workdir), records


def assert_same_outcome(workdir, other):
    for found, expected in zip(outcome(workdir)[0], outcome(other)[0], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert outcome(workdir)[1] == outcome(other)[1]


@pytest.mark.slow
def test_a_stream_that_is_stopped_ends_as_if_it_had_not_been(folder, tmp_path, console):
    config = streamed(folder)
    whole = loop.fit(config, tmp_path / "whole", console=console)
    assert whole.count == 6
    config.duration, config.data.workers = "5 steps", 0
    loop.fit(config, tmp_path / "run", console=console)
    config.duration, config.data.workers = "4 epochs", 1
    loop.fit(config, tmp_path / "run", console=console)
    arrays, _ = outcome(tmp_path / "run")
    for found, expected in zip(arrays, outcome(tmp_path / "whole")[0], strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("strategy", [pytest.param(name, marks=pytest.mark.slow) for name in ("shard_map", "pmap")])
def test_a_stream_on_eight_devices_trains_like_on_one(folder, tmp_path, console, x64, strategy):
    config = streamed(folder)
    config.duration, config.model.dtype, config.model.options.param_dtype = "2 epochs", "float64", "float64"
    for name in ("jit", strategy):
        config.parallel.strategy = name
        loop.fit(config, tmp_path / name, console=console)
    for leaf, other in zip(*(outcome(tmp_path / name)[0] for name in ("jit", strategy)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_kills_change_nothing_of_a_stream(folder, tmp_path):
    def command(workdir):
        flags = [
            f"--config.data.name=folder:{folder}",
            "--config.model.options.norm=batch_norm",
            "--config.data.image_size=16",
            "--config.data.mean=(0.5,)",
            "--config.data.std=(0.25,)",
            "--config.data.crop=random_resized",
            "--config.data.workers=2",
            "--config.batch_size=8",
            "--config.duration=40 epochs",
            "--config.checkpoint.every=5 steps",
        ]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *flags]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    process = command(tmp_path / "whole")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    seed = random.randrange(1000)
    print("seed of the moments", seed)
    rng = random.Random(seed)
    for _ in range(3):
        process = command(tmp_path / "run")
        before = max((record["step"] for record in read_metrics(tmp_path / "run")), default=0)
        while process.poll() is None:
            step = max((record["step"] for record in read_metrics(tmp_path / "run")), default=0)
            if step > before:
                break
            time.sleep(0.01)
        time.sleep(rng.random())
        process.kill()
        process.communicate()
    printed, _ = (process := command(tmp_path / "run")).communicate(timeout=300)
    assert process.returncode == 0, printed
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def test_memory_and_stream_train_alike_on_pictures_of_one_size(config, tmp_path, console):
    config.duration, config.data.workers = "3 steps", 1
    for loading in ("memory", "stream"):
        config.data.loading = loading
        loop.fit(config, tmp_path / loading, console=console)
    for leaf, other in zip(*(outcome(tmp_path / name)[0] for name in ("memory", "stream")), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)  # two programs, each with its rounding


def damaged(folder, count=1):
    """Damages pictures to train on and one to test on; returns their paths."""
    victims = []
    for split, number in (("train", count), ("test", 1)):
        source = open_dataset(streamed(folder), split, training=False).source
        victims += [source.describe(index) for index in range(number)]
    for index, path in enumerate(victims):
        with open(path, "r+b") as file:  # noqa: PTH123
            file.truncate(0 if index % 2 else 500)
    return victims


@pytest.mark.parametrize("loading", ["stream", "memory"])
def test_a_bad_picture_ends_a_run_with_its_name_and_nothing_is_written(tmp_path, console, loading):
    config = streamed(write_folder(tmp_path / "three", 10), loading=loading)
    config.data.crop = "center"
    (first, *_) = damaged(tmp_path / "three")
    with pytest.raises(UserError, match=r": (truncated|empty file); --config.data.bad_images=skip") as raised:
        loop.fit(config, tmp_path / "run", console=console)
    assert "\n" not in str(raised.value) and first in str(raised.value)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("loading", ["stream", "memory"])
def test_bad_pictures_may_be_left_out_and_are_counted(tmp_path, console, capfd, loading):
    config = streamed(write_folder(tmp_path / "three", 10), loading=loading, bad_images="skip")
    config.data.crop, config.duration = "center", "2 epochs"
    victims = damaged(tmp_path / "three", 3)
    result = loop.fit(config, tmp_path / "run", console=console)
    assert (result.count, result.left_out) == (5, 1) and result.confusion.sum() == 5
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert sorted(line.split(": ")[1] for line in said) == sorted(victims)  # each once
    assert {line.split(": ")[2] for line in said} == {"truncated", "empty file"}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["test"]["count"], results["test"]["left_out"]) == (5, 1)
    assert "of 5 right, 1 left out)" in console.file.getvalue()
    epochs = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "epoch"]
    assert all(np.isfinite(record["loss"]) for record in epochs)
    assert [record["left_out"] for record in epochs] == [3, 3]


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_a_bad_picture_counts_for_nothing_in_a_step(tmp_path, mixup):
    """The parameters are those of a step on the others; mixing leaves out the neighbour of a bad one as well."""
    config = streamed(write_folder(tmp_path / "three", 10), bad_images="skip", loading="memory")
    config.data.crop, config.augment = "center", AugmentConfig(mixup=mixup)
    config.model.options = ConfigDict()  # without BatchNorm, which sees what is black
    damaged(tmp_path / "three", 1)
    dataset, strategy = open_dataset(config, "train", training=True), Strategy("jit")
    experiment = make_experiment(config, dataset.source.class_names, dataset.image_shape)
    with open_loaders(config.data, strategy, {"train": dataset}, {"train": 8}, 2**30) as loaders:
        train = loaders["train"]
        indices = BatchIndices(0, np.array([4, 2, 0, 3, 5, 6], np.int32), np.ones(6, np.float32))
        with contextlib.closing(train.batches(iter([indices]))) as batches:
            batch = train.assemble(train.resident, batches.next().inputs)
    assert batch["mask"].tolist() == [1, 1, 0, 1, 1, 1] and set(train.bad_images.reasons) == {0}
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_train_step(experiment.model, optimizer, experiment.preprocess, mix=experiment.mix))
    state = experiment.create_state(optimizer)
    kept = np.array([0, 1, 4, 5] if mixup else [0, 1, 3, 4, 5])
    after, metrics = step(state, batch)
    expected, expected_metrics = step(state, {name: leaf[kept] for name, leaf in batch.items()})
    assert int(metrics["count"]) == int(expected_metrics["count"]) == len(kept)
    for leaf, other in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-7)


def test_a_batch_of_bad_pictures_is_no_divergence(tmp_path, console):
    config = streamed(write_folder(tmp_path / "three", 10), bad_images="skip")
    config.duration = "2 epochs"
    for path in open_dataset(config, "train", training=True).source.files.tolist():
        (tmp_path / "three" / os.fsdecode(path)).write_bytes(b"<html>")
    assert loop.fit(config, tmp_path / "run", console=console).count == 6
    epochs = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "epoch"]
    assert [(record["left_out"], record["skipped"]) for record in epochs] == [(24, 0), (24, 0)]


def test_every_picture_bad_is_an_error_and_not_a_number(tmp_path, console):
    config = streamed(write_folder(tmp_path / "three", 10), bad_images="skip")
    config.duration = "1 epochs"
    for path in (tmp_path / "three").rglob("*.jpg"):
        path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"no image of split 'test' of .* can be read"):
        loop.fit(config, tmp_path / "run", console=console)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loading": "memory"},
            "data.crop 'random_resized' decodes images anew in each epoch; write data.loading 'stream'",
        ),
        ({"image_size": None}, "data.crop is 'random_resized', which needs a size; set data.image_size"),
        ({"image_size": None, "crop": "center"}, "differ in size; set data.image_size"),
        ({"crop": "random"}, r"data.shorter_side is \(\); data.crop 'random' takes \(16,\) or a range such as"),
        ({"crop": "random", "shorter_side": (12, 20)}, "of 16 or more"),
        ({"crop_area": (0.5,)}, "write the smallest and the largest"),
        ({"name": "folder:/nowhere/pets"}, "there is no folder /nowhere/pets"),
        ({"test_split": "val"}, "has no split 'val'; it has train, test"),
        ({"mean": (0.1, 0.2)}, "data.mean has 2 values"),
    ],
)
def test_mistakes_are_said_before_a_process_is_started(folder, tmp_path, console, monkeypatch, change, message):
    monkeypatch.setattr(loader, "WorkerPool", None)
    config = streamed(folder)
    for name, value in change.items():
        setattr(config.data, name, value)
    with pytest.raises(UserError, match=message) as raised:
        loop.fit(config, tmp_path / "run", console=console)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_run_goes_on_only_with_the_pictures_that_it_began_with(tmp_path, console):
    pictures = write_folder(tmp_path / "three", 10)
    config = streamed(pictures)
    config.duration = "1 steps"
    loop.fit(config, tmp_path / "run", console=console)
    config.duration = "2 steps"
    pictures = pictures.rename(tmp_path / "moved")
    config.data.name = f"folder:{pictures}"
    loop.fit(config, tmp_path / "run", console=console)
    for number in range(10, 15):
        (pictures / "temple" / f"{number}.jpg").write_bytes(jpeg(PIECE))
    config.duration = "3 steps"
    with pytest.raises(UserError, match=r"training images are no longer those that .*run was trained on"):
        loop.fit(config, tmp_path / "run", console=console)
    (pictures / "temple").rename(pictures / "pagoda")
    with pytest.raises(UserError, match="run was trained on other classes"):
        loop.fit(config, tmp_path / "run", console=console)


@pytest.mark.parametrize("given", ["all", "one less"])
def test_processes_with_other_pictures_are_refused(folder, monkeypatch, given):
    """What the two of a pair would say of theirs is gathered here."""
    source = open_dataset(streamed(folder), "train", training=True).source
    others = source if given == "all" else dataclasses.replace(source, files=source.files[1:])
    said = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda own: said.append(own) or own)
    processes.assert_equal_across_processes("the images", others.fingerprint)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda own: np.stack([own, said[0]]))
    with contextlib.nullcontext() if given == "all" else pytest.raises(UserError, match="the images that the"):
        processes.assert_equal_across_processes("the images", source.fingerprint)


def test_a_set_too_large_for_memory_is_streamed(config, monkeypatch):
    dataset = open_dataset(config, "train", training=True)
    needed = 1438 * 64
    monkeypatch.setattr(memory, "device_bytes", lambda device: 4 * needed)
    assert memory.memory_for_data() == needed
    for limit, expected in ((needed, False), (needed - 1, True)):
        config.data.loading = "auto"
        assert loader.is_streamed(config.data.loading, dataset, limit) is expected
    config.data.loading = "memory"
    with pytest.raises(UserError, match=r"takes 0.0 GiB decoded.*'train\[:10%\]'"):
        loader.is_streamed(config.data.loading, dataset, needed - 1)


def test_the_time_that_the_device_waits_is_measured():
    """Batches take 50 ms each; a device that is busy all the time has not waited, one that is idle has."""

    def slow():
        for number in range(6):
            time.sleep(0.05)
            yield number

    class Work:
        def __init__(self, done):
            self.done = done

        def is_ready(self):
            return self.done

    for done, low, high in ((False, 0.0, 0.0), (True, 0.2, 2.0)):
        with contextlib.closing(Prefetcher(slow(), ahead=1)) as batches:
            assert [batches.next(busy=Work(done)) for _ in range(6)] == list(range(6))
            assert low <= batches.idle_seconds <= high
            for _ in range(2):
                with pytest.raises(StopIteration):
                    batches.next()


def test_an_error_on_the_way_reaches_the_one_who_asks():
    def fails():
        yield 1
        raise UserError("broken")

    with contextlib.closing(Prefetcher(fails(), ahead=2)) as batches:
        assert batches.next() == 1
        with pytest.raises(UserError, match="broken"):
            batches.next()


def test_a_kill_of_the_run_takes_its_processes_along(folder, tmp_path):
    """Those that decode end by themselves when the one that asks is gone."""
    script = (
        "import sys, time\n"
        "from flaxcnn.data.dataset import ImageDataset\n"
        "from flaxcnn.data.sources.opening import open_source\n"
        "from flaxcnn.data.loading.worker_pool import WorkerPool\n"
        f"dataset = ImageDataset(open_source('folder:{folder}', 'train'), (16, 16, 3), crop='center')\n"
        "pool = WorkerPool({'train': dataset}, rows={'train': 8}, workers=2)\n"
        "print(*[worker.process.pid for worker in pool._workers], flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2 and all(_is_alive(worker) for worker in workers)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(_is_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_alive(worker) for worker in workers)


def _is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def one_epoch(config):
    """The path of each picture of a folder, and whether it was of use, as a stream of it has it."""
    dataset, strategy = open_dataset(config, "train+test", training=False), Strategy("jit")
    count = len(dataset.source)
    with open_loaders(config.data, strategy, {"all": dataset}, {"all": count}, 2**30) as loaders:
        indices = BatchIndices(0, np.arange(count, dtype=np.int32), np.ones(count, np.float32))
        with contextlib.closing(loaders["all"].batches(iter([indices]))) as batches:
            batch = batches.next().inputs
    paths = [Path(dataset.source.describe(example)) for example in range(count)]
    return dict(zip(paths, np.asarray(batch["mask"]).astype(bool).tolist(), strict=True))


ENORMOUS = {"an enormous JPEG": lambda: claiming("JPEG", 30_000, 30_000)}
USELESS = {kind: make for kind, (make, _) in REFUSED.items()} | ENORMOUS


def test_odd_pictures_are_of_use_and_useless_ones_left_out(folder, tmp_path, capfd):
    """Every kind at once, also where the name of the file claims another format than it has."""
    kinds = JPEG | OTHERS | USELESS
    for index, make in enumerate(kinds.values()):
        path = tmp_path / "odd" / "ab"[index % 2] / f"{index}.{('jpg', 'PNG', 'webp')[index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make())
    config = streamed(tmp_path / "odd", bad_images="skip", loading="stream")
    of_use = {int(path.stem): used for path, used in one_epoch(config).items()}
    for index, kind in enumerate(kinds):
        assert of_use[index] == (kind not in USELESS), kind
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(said) == 21 and "more of folder:" in said[-1]  # twenty by name


@pytest.mark.parametrize("kind", USELESS)
def test_each_useless_picture_stops_a_run_by_its_name(folder, tmp_path, kind):
    for number in range(3):
        (tmp_path / "odd" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / "ab"[number % 2] / f"{number}.jpg").write_bytes(
            USELESS[kind]() if number == 2 else jpeg(PIECE)
        )
    config = streamed(tmp_path / "odd", loading="stream")
    config.data.workers = 0
    with pytest.raises(UserError, match=r"odd/a/2\.jpg: ") as raised:
        one_epoch(config)
    assert "\n" not in str(raised.value)
