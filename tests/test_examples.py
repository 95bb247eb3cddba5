"""The examples run as their docstrings say, and learn."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from examples.time_series import cylinder_bell_funnel
from tests.conftest import ROOT

# A program that runs once is better compiled soon than well.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def run(name, *arguments, flags=""):
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_time_series_learns_in_one_epoch():
    lines = run("time_series.py", "--epochs=1", flags=QUICK).splitlines()
    assert len(lines) == 2
    accuracy = re.fullmatch(r"epoch 1: accuracy (0\.\d{4}) on 3000 held-out series", lines[0])[1]
    assert lines[1] == f"final accuracy {accuracy}"
    assert float(accuracy) > 0.8  # chance is 1/3


@pytest.mark.slow
def test_time_series_reaches_the_accuracy_of_its_docstring():
    final = run("time_series.py").splitlines()[-1]
    assert float(final.removeprefix("final accuracy ")) > 0.99


def test_cylinder_bell_and_funnel_have_the_mean_of_their_definition():
    series, labels = cylinder_bell_funnel(np.random.default_rng(0), 30_000)
    assert series.shape == (30_000, 128) and np.bincount(labels).tolist() == [10_000] * 3
    means, squares = np.zeros((3, 129)), np.zeros((3, 129))  # t counts from 1
    for a in range(16, 33):
        for b in range(a + 32, a + 97):
            t = np.arange(a, b + 1)
            for label, shape in enumerate([np.ones(len(t)), (t - a) / (b - a), (b - t) / (b - a)]):
                means[label, t] += 6 * shape / (17 * 65)
                squares[label, t] += (6**2 + 1) * shape**2 / (17 * 65)
    deviations = np.sqrt(1 + squares - means**2)
    for label in range(3):
        found = series[labels == label]
        errors = np.abs(found.mean(axis=0) - means[label, 1:]) / (deviations[label, 1:] / 100)
        assert errors.max() < 5, label  # standard deviations of the mean of 10,000
        np.testing.assert_allclose(found.std(axis=0), deviations[label, 1:], rtol=0.1)
