"""A run that is killed comes back as if nothing had happened: shown by killing a process, five times."""

import os
import random
import subprocess
import sys
import time

import jax
import numpy as np

from flaxcnn.training.inference import load_trained
from flaxcnn.training.logging import read_metrics
from tests.conftest import ROOT


def start(workdir):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--workdir={workdir}",
        "--config.model.options.norm=batch_norm",
        "--config.data.image_size=12",
        "--config.batch_size=32",
        "--config.duration=6 epochs",
        "--config.logging.every=10 steps",
        "--config.checkpoint.every=7 steps",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def steps_recorded(workdir):
    return max((record["step"] for record in read_metrics(workdir)), default=0)


def records(workdir):
    """All metrics but the speed, which no two runs share."""
    return [
        {name: value for name, value in record.items() if name != "images_per_second"}
        for record in read_metrics(workdir)
    ]


def test_five_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))
    seed = int.from_bytes(os.urandom(4), "little")
    rng = random.Random(seed)
    print(f"moments of the kills drawn from seed {seed}")
    total = steps_recorded(whole)
    for kill in range(5):
        process = start(killed)
        # A moment anywhere in the next seventh of the run, down to the middle of a step or a save.
        target = total * (kill + rng.random()) / 7
        deadline = time.monotonic() + 120
        while steps_recorded(killed) < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
    assert "continuing" in finish(start(killed))

    (_, expected), (_, found) = load_trained(whole), load_trained(killed)
    for before, after in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        if jax.numpy.issubdtype(before.dtype, jax.dtypes.prng_key):
            before, after = jax.random.key_data(before), jax.random.key_data(after)
        np.testing.assert_array_equal(before, after)
    assert int(found.step) == total == 264
    assert records(whole) == records(killed)
    results = [(folder / "results.json").read_text() for folder in (whole, killed)]
    assert results[0] == results[1]
