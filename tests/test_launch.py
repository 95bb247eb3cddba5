"""What a process is set up with: the same process and arguments, huge pages, and libraries of XLA that exist."""

import os
import subprocess
import sys

import pytest

from flaxcnn import launch
from tests.conftest import ROOT

SCRIPT = """
import os, sys
from flaxcnn import launch
launch.prepare_process()
array = b"x" * (1 << 27)  # NumPy asks for huge pages itself
lines = open("/proc/self/smaps_rollup").read().splitlines()
huge = [int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")]
print(os.getpid(), sys.argv[1:], sys.flags.optimize, os.environ.get("GLIBC_TUNABLES"), huge[0] > len(array) >> 11)
"""
offered = pytest.mark.skipif(
    not launch._huge_pages_are_offered(), reason="this kernel gives no huge pages on request"
)


def run(tmp_path, tunables):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"GLIBC_TUNABLES": tunables} if tunables else {})
    process = subprocess.Popen(
        [sys.executable, "-O", str(path), "--one=a b", ""], env=environment, stdout=subprocess.PIPE, text=True
    )
    output = process.communicate()[0].strip()
    assert process.returncode == 0
    same = f"{process.pid} ['--one=a b', ''] 1 "
    assert output.startswith(same)
    return output.removeprefix(same)


@offered
def test_the_same_command_runs_in_huge_pages(tmp_path):
    assert run(tmp_path, "") == f"{launch.HUGE_PAGES} True"
    assert run(tmp_path, "glibc.malloc.check=0") == f"glibc.malloc.check=0:{launch.HUGE_PAGES} True"


def test_what_a_user_has_set_stays(tmp_path):
    assert run(tmp_path, "glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0 False"


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """A kernel that gives huge pages on request, and a process that must not start anew."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never")
    monkeypatch.setattr(launch, "OFFER", path)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started anew"))
    for name in ("GLIBC_TUNABLES", "XLA_FLAGS"):
        monkeypatch.setenv(name, "")
    return path


@pytest.mark.parametrize("text", ["always madvise [never]", "[always] madvise never", None])
def test_without_an_offer_of_huge_pages_it_goes_on(offer, text):
    if text:
        offer.write_text(text)
    else:
        offer.unlink()
    launch.prepare_process()
    assert os.environ["GLIBC_TUNABLES"] == ""
    assert os.environ["XLA_FLAGS"] == launch.YNNPACK_FOR_SUMS


def test_a_process_that_cannot_start_anew_goes_on(offer, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(launch, "OFFER", offer)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(sys, "executable", str(offer.parent / "missing"))
    launch.prepare_process()
    assert os.environ["XLA_FLAGS"] == launch.YNNPACK_FOR_SUMS


def test_flags_of_a_user_stay(offer, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    assert launch.settings()["XLA_FLAGS"] == f"--xla_cpu_multi_thread_eigen=true {launch.YNNPACK_FOR_SUMS}"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    assert "XLA_FLAGS" not in launch.settings()


def test_a_release_that_may_not_know_an_option_is_not_given_it(offer, monkeypatch):
    monkeypatch.setattr(launch, "_jaxlib", lambda: "1.0.0")
    assert "XLA_FLAGS" not in launch.settings()


def test_this_release_knows_the_options_and_computes_as_they_say():
    program = """
import jax
x, kernel, numbers = jax.numpy.ones((8, 32, 32, 64)), jax.numpy.ones((3, 3, 64, 64)), ("NHWC", "HWIO", "NHWC")
convolve = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
print("ynn" in jax.jit(convolve).lower(x, kernel).compile().as_text())
"""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    answers = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment | flags, capture_output=True, text=True, check=True
        ).stdout.strip()
        for flags in ({}, {"XLA_FLAGS": launch.YNNPACK_FOR_SUMS})
    ]
    assert answers == ["True", "False"]
