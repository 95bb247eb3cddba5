"""Several processes: how they find each other, and that they are one run."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.parallel import processes
from flaxcnn.trained.run import load_trained
from tests import faults
from tests.images import write_folder


@pytest.fixture
def initialized(monkeypatch):
    """The arguments with which JAX was asked to join others, instead of joining them."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name in (*processes._PROCESS_COUNTS, "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "16"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_a_launcher_of_several_processes_is_noticed(initialized, monkeypatch, variables, joins):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    processes.initialize()
    assert len(initialized) == joins
    processes.initialize("none")
    assert len(initialized) == joins
    processes.initialize("cluster")
    assert len(initialized) == joins + 1


def test_an_address_is_handed_on(initialized):
    processes.initialize("host:1234", 3, 2)
    (arguments,) = initialized
    expected = {"coordinator_address": "host:1234", "num_processes": 3, "process_id": 2}
    assert arguments.items() >= expected.items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1234",), "go together"),
        (("auto", 2, 0), "go together"),
        (("host", 2, 0), "write HOST:PORT"),
        (("host:x", 2, 0), "write HOST:PORT"),
        (("host:1", 2, 2), "--process_id is 2; it must be 0 or more and below 2"),
    ],
)
def test_mistakes_are_one_line(initialized, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        processes.initialize(*arguments)
    assert "\n" not in str(raised.value) and not initialized


def test_what_jax_cannot_find_is_one_line(initialized, monkeypatch):
    def fail(**_):
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"cannot join the other processes: coordinator.*--coordinator=HOST:PORT"):
        processes.initialize("cluster")


def test_where_one_process_fails_all_do(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda own: np.array([own, True, False]))
    with (
        pytest.raises(UserError, match="process 1 cannot go on; it says why"),
        processes.raise_on_all_processes(),
    ):
        pass
    with pytest.raises(UserError, match=r"^own$"), processes.raise_on_all_processes():
        raise UserError("own")


# In double precision, in which 88 steps add up to no more than rounding.
PRECISE = (
    "--config.model.dtype=float64",
    "--config.model.options.param_dtype=float64",
    "--config.duration=2 epochs",
    "--config.checkpoint.every=1 epochs",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with faults.variables(JAX_ENABLE_X64="1"):
        run = faults.Run(tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("data"))
        run.finish(*PRECISE)
        yield run


def assert_one_run(pair, alone, *, steps=88, starts=1):
    """The same parameters to 1e-6, the same count and accuracy, and all of it said and written once."""
    (_, found), (_, expected) = (load_trained(run.workdir) for run in (pair, alone))
    assert int(found.step) == int(expected.step) == steps
    for leaf, other in zip(*(jax.tree.leaves(state.variables) for state in (found, expected)), strict=True):
        # Pictures are resized in float32, which rounds by the number that a device has; what that leaves in weights
        # of a tenth, 1e-10 at most, weights near zero have as well.
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-9)
    for name in ("count", "accuracy"):
        assert pair.results()["test"][name] == alone.results()["test"][name]
    assert [(r["kind"], r["step"]) for r in pair.records()] == [(r["kind"], r["step"]) for r in alone.records()]
    assert len(list(pair.workdir.glob("events.out.*"))) == starts
    run = json.loads((pair.workdir / "run.json").read_text())
    assert (run["execution"]["processes"], run["execution"]["devices"]) == (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["shard_map", "pmap"])
def test_two_processes_with_two_devices_each_are_one_run(tmp_path, alone, x64, strategy):
    pair = faults.Pair(tmp_path, alone.data)
    first, second = pair.finish_both(*PRECISE, f"--config.parallel.strategy={strategy}")
    assert_one_run(pair, alone)
    assert "test accuracy" in first and "accuracy" not in second


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs mpirun (Debian's openmpi-bin)")
def test_mpirun_is_enough(tmp_path, alone, x64):
    pair = faults.Pair(tmp_path, alone.data)
    program = [sys.executable, str(faults.ROOT / "train.py"), f"--workdir={pair.workdir}", *faults.FLAGS, *PRECISE]
    # Root may run it only where the variables say so; two processes may be more than there are cores.
    environment = pair.environment | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "--oversubscribe", "-n", "2", *program]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert_one_run(pair, alone)


def streaming(folder):
    """The flags of a run of 48 steps on random crops of 96 pictures, evaluated on 24."""
    return (
        *PRECISE,
        f"--config.data.name=folder:{folder}",
        "--config.data.crop=random_resized",
        "--config.augment.flip=random",
        "--config.batch_size=8",
        "--config.data.workers=1",
        "--config.evaluation.batch_size=10",
        "--config.duration=4 epochs",
    )


@pytest.fixture
def double_precision():
    with faults.variables(JAX_ENABLE_X64="1"):
        yield


@pytest.mark.slow
def test_two_processes_that_stream_are_one_run(tmp_path, x64, double_precision):
    """Each decodes its own pictures; a kill of both in the middle changes nothing."""
    flags = streaming(write_folder(tmp_path / "pictures", 40))
    alone, pair = faults.Run(tmp_path / "alone", tmp_path), faults.Pair(tmp_path / "pair", tmp_path)
    alone.finish(*flags)
    processes = pair.start_both(*flags)
    pair.wait_until(lambda: bool(pair.checkpoints), processes[0])
    for process in processes:
        process.kill()
        process.communicate()
    pair.finish_both(*flags)
    assert_one_run(pair, alone, steps=48, starts=2)
    assert pair.results()["test"]["count"] == 24


@pytest.mark.slow
def test_a_bad_picture_in_one_of_two_processes(tmp_path, double_precision):
    """Left out, it is counted by both; otherwise both end, one with its name."""
    folder = write_folder(tmp_path / "pictures", 40)
    flags = streaming(folder)
    victim = sorted(folder.rglob("*.jpg"))[50]
    victim.write_bytes(b"<html>")
    pair = faults.Pair(tmp_path / "skip", tmp_path)
    pair.finish_both(*flags, "--config.data.bad_images=skip")
    left_out = [record["left_out"] for record in pair.records() if record["kind"] == "epoch"]
    assert pair.results()["test"].get("left_out", 0) + left_out[0] == 1 and len(set(left_out)) == 1
    pair = faults.Pair(tmp_path / "stop", tmp_path)
    printed = "".join(pair.finish_both(*flags, code=2))
    assert f"{victim}: neither JPEG nor PNG" in printed and "process" in printed


@pytest.mark.slow
def test_a_mistake_ends_both_processes_with_one_line(tmp_path, alone):
    pair = faults.Pair(tmp_path, alone.data)
    for printed in pair.finish_both("--config.batch_size=30", code=2):
        assert "error: batch_size is 30, which 4 devices cannot divide evenly; write 28 or 32" in printed
    assert not any(tmp_path.iterdir())
