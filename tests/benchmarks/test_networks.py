"""The comparison of networks: its rows, what it marks, and what becomes of a system that cannot run."""

import sys

import pytest

from benchmarks import machine, network_report
from benchmarks.networks import NETWORKS, _networks, _tasks, measure
from benchmarks.systems.jax_system import shared_time
from benchmarks.systems.serve import Task
from benchmarks.worker import Failure, Worker
from flaxcnn import UserError, model_info


def row(system, speed_of_ours, **fields):
    low, median, high = (100 / ratio for ratio in speed_of_ours)
    return {
        "network": "resnet18",
        "mode": "training",
        "batch": 32,
        "dtype": "float32",
        "system": system,
        "images_per_second": [low, median, high],
        "milliseconds": 32e3 / median,
        "speed_of_ours": speed_of_ours,
        "peak_bytes": 500 * 2**20,
        "first_seconds_cold": 20.0,
        "first_seconds_warm": 3.0,
        "macs_per_second": 5e9,
        "share_of_matrix_rate": 0.1,
        **fields,
    }


def test_every_figure_that_a_peer_does_better_is_marked():
    ours = row("ours", [1.0, 1.0, 1.0])
    faster = row("torch", [0.7, 0.8, 1.1], peak_bytes=400 * 2**20, first_seconds_warm=4.0)
    slower = row("stock", [0.9, 1.2, 1.3], first_seconds_cold=19.0)
    text = dict(zip(network_report.COLUMNS, network_report.cells(faster, ours), strict=True))
    assert text["images/s"] == "**125 (143 to 91)**"
    assert text["speed of flaxcnn"] == "**0.80 (0.70 to 1.10)**"
    assert text["memory, MiB"] == "**400**"
    assert (text["first result, s"], text["warm, s"]) == ("20.0", "4.0")
    text = dict(zip(network_report.COLUMNS, network_report.cells(slower, ours), strict=True))
    assert text["speed of flaxcnn"] == "1.20 (0.90 to 1.30)"
    assert (text["memory, MiB"], text["first result, s"]) == ("500", "**19.0**")
    assert not any("**" in cell for cell in network_report.cells(ours, ours))


def test_the_page_has_each_kind_of_task_and_says_what_is_absent(tmp_path):
    absent = {key: row("keras", [1, 1, 1])[key] for key in ("network", "mode", "batch", "dtype", "system")}
    absent["absent"] = "not in keras.applications"
    one = {"mode": "inference", "batch": 1}
    rows = [row("ours", [1, 1, 1]), row("torch", [2, 2, 2]), absent, row("ours", [1, 1, 1], **one)]
    page = network_report.markdown(rows)
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "## Training, float32",
        "## Inference, one image, float32",
    ]
    labels = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| resnet18, 32")]
    assert labels == ["flaxcnn", "Keras on JAX", "torch"]
    assert "| not in keras.applications |" in page
    network_report.draw(rows, tmp_path / "chart.svg")
    chart = (tmp_path / "chart.svg").read_text()
    assert "resnet18" in chart
    assert "Keras" not in chart


def test_batches_are_given_by_name_or_taken_from_the_list():
    assert _networks(["resnet18", "lenet5=8"], "cpu") == {"resnet18": NETWORKS["cpu"]["resnet18"], "lenet5": 8}
    assert _networks(None, "gpu") == NETWORKS["gpu"]
    for argument, message in {"resnet81": "did you mean", "nin": "has no batch", "nin=x": "NAME=BATCH"}.items():
        with pytest.raises(UserError, match=message):
            _networks([argument], "cpu")


def test_every_network_of_the_lists_is_one():
    for networks in NETWORKS.values():
        for network in networks:
            assert model_info(network).name == network


def test_a_system_that_cannot_start_says_why_in_a_line(tmp_path):
    task = Task("torch", "resnet18", "training", 2, (32, 32, 3), 1000, "float32", 1)
    with pytest.raises(Failure, match="no such python: No such file"):
        Worker(task, "no such python", "torch_networks", tmp_path)
    blind = tmp_path / "python"
    blind.write_text(f"#!/bin/sh\nexec {sys.executable} -S -I -c 'import torch'\n")
    blind.chmod(0o755)
    with pytest.raises(Failure, match=r"^torch is not installed$"):
        Worker(task, str(blind), "torch_networks", tmp_path)


@pytest.mark.slow
def test_two_systems_in_processes_of_their_own_give_comparable_rows():
    rates = {"macs_per_second": 1e12, "bytes_per_second": 1e12}
    training, inference, _ = _tasks("lenet5", 4, "float32", ["ours", "stock"], ["training", "inference"])
    for tasks in (training, inference):
        rows = measure(tasks, dict.fromkeys(("ours", "stock"), sys.executable), turns=3, seconds=0.05, rates=rates)
        assert [found["system"] for found in rows] == ["ours", "stock"]
        for found in rows:
            assert not found.keys() & {"absent", "failed", "note"}
            assert found["parameters"] == model_info("lenet5").parameters
            assert len(found["seconds_per_step"]) == 3
            assert found["threads"] == machine.cores()
            # 416,520 multiply-adds by hand: 28*28*6*25 + 10*10*16*150 + 400*120 + 120*84 + 84*10
            passes = 3 if found["mode"] == "training" else 1
            images = found["batch"] / found["milliseconds"] * 1e3
            assert found["macs_per_second"] == pytest.approx(416_520 * passes * images)


def test_operations_that_run_at_a_time_share_it():
    spans = [("a", 10.0, 14.0), ("b", 12.0, 16.0), ("b", 20.0, 21.0), ("b", 20.0, 21.0)]
    assert shared_time(("a", "b", "c"), spans) == {"a": 3.0, "b": 4.0, "c": 0.0}


@pytest.mark.slow
def test_the_profile_of_a_step_is_as_long_as_the_step(tmp_path):
    task = Task("ours", "resnet18", "training", 2, (64, 64, 3), 1000, "float32", machine.cores())
    with Worker(task, sys.executable, "flax_networks", tmp_path) as worker:
        found, seconds = worker.profile(10), worker.run(10) / 10
    assert found.keys() == {"convolution", "product", "sum", "other"}
    assert all(found.values())
    assert 0.5 * seconds < sum(found.values()) < 3 * seconds
