"""Compares flaxcnn with stock Flax, Keras on JAX, torch and torch.compile, network by network, in one run.

    python -m benchmarks.networks --torch-python PYTHON --keras-python PYTHON
    python -m benchmarks.networks --networks lenet5 resnet18=64 --systems ours torch --turns 5

docs/performance.md says what is measured, and how. Results are merged into the files of --output; a network that
was measured at this commit already is left out, so that the same command goes on after a stop.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

import flaxcnn
from benchmarks import machine, network_report
from benchmarks.records import Records, Row, default_output
from benchmarks.systems.serve import Task
from benchmarks.turns import quartiles, speed_ratios, steps_for, take_turns
from benchmarks.worker import Failure, Worker
from flaxcnn.errors import UserError, first_line

# The module that runs each system, and the option that names its Python.
SYSTEMS = {
    "ours": ("flax_networks", None),
    "stock": ("flax_networks", None),
    "keras": ("keras_networks", "keras_python"),
    "torch": ("torch_networks", "torch_python"),
    "torch_compile": ("torch_networks", "torch_python"),
}
# By platform, the networks and the images of a large batch.
NETWORKS = {
    "cpu": {
        "lenet5": 256,
        "alexnet": 64,
        "vgg11": 16,
        "googlenet": 32,
        "resnet18": 32,
        "resnet50": 16,
        "resnext50_32x4d": 8,
        "densenet121": 16,
        "regnet_y_400mf": 32,
    },
    "gpu": dict.fromkeys(
        (
            "lenet5",
            "alexnet",
            "vgg16",
            "googlenet",
            "resnet18",
            "resnet50",
            "resnext50_32x4d",
            "densenet121",
            "regnet_x_3_2gf",
            "regnet_y_3_2gf",
        ),
        256,
    ),
}
KEYS = ("network", "mode", "batch", "dtype", "system")
# A training step applies each kernel forward, and backward once to its input and once to its gradient.
PASSES = {"training": 3, "inference": 1}


def measure(tasks: list[Task], pythons: dict[str, str], turns: int, seconds: float, rates: dict) -> list[Row]:
    """Returns a row for each task: one network in one mode, by several systems, of which the first is compared."""
    failures: dict[str, Failure] = {}
    cold: dict[str, float] = {}
    workers: dict[str, Worker] = {}
    found: dict[str, list[float]] = {}
    finished: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for task in tasks:
            try:
                start = functools.partial(Worker, task, pythons[task.system], SYSTEMS[task.system][0], cache)
                with start() as worker:
                    cold[task.system] = worker.ready["first_seconds"]
                workers[task.system] = stack.enter_context(start())
            except Failure as failure:
                failures[task.system] = failure
        while (runs := {name: workers[name].run for name in workers if name not in failures}) and not found:
            try:
                steps = {name: steps_for(run, seconds) for name, run in runs.items()}
                found = take_turns(runs, steps, turns)
            except Failure as failure:  # the turns of the others count only without it
                failures[failure.system] = failure
        for name in found:
            try:
                finished[name] = workers[name].finish()
            except Failure as failure:
                failures[name] = failure
    rows = []
    for task in tasks:
        row = _settings(task)
        name = task.system
        if name in failures:
            row[failures[name].key] = str(failures[name])
        else:
            row |= _figures(task, found[name], workers[name].ready, finished[name], rates)
            row["first_seconds_cold"] = cold[name]
            if tasks[0].system in found:
                row["speed_of_ours"] = speed_ratios(found[tasks[0].system], found[name])
        rows.append(row)
    return rows


def _settings(task: Task) -> Row:
    row = dataclasses.asdict(task)
    return {name: row[name] for name in (*KEYS, "image_shape", "num_classes", "threads")}


def _figures(task: Task, seconds: list[float], ready: dict, finished: dict, rates: dict) -> Row:
    cost = flaxcnn.model_info(task.network).cost
    rate = quartiles([task.batch / each for each in seconds])
    step = quartiles(seconds)[1]
    macs = PASSES[task.mode] * cost.macs * task.batch / step
    row = {
        "seconds_per_step": seconds,
        "images_per_second": rate,
        "milliseconds": 1e3 * step,
        "first_seconds_warm": ready["first_seconds"],
        "peak_bytes": finished["peak_bytes"],
        "macs_per_second": macs,
        "share_of_matrix_rate": macs / rates["macs_per_second"],
        "parameters": ready["parameters"],
        "versions": ready["versions"],
        "matrix_rate": rates["macs_per_second"],
        "copy_bandwidth": rates["bytes_per_second"],
    }
    if finished["bytes_accessed"]:
        row["share_of_bandwidth"] = finished["bytes_accessed"] / step / rates["bytes_per_second"]
    if ready["parameters"] != cost.parameters:
        row["note"] = f"another network: {ready['parameters']:,} parameters, not {cost.parameters:,}"
    return row


def _tasks(network: str, batch: int, dtype: str, systems: list[str], modes: list[str]) -> list[list[Task]]:
    info = flaxcnn.model_info(network)
    common = (info.input_shape, info.num_classes, dtype, machine.cores())
    kinds = (("training", batch), ("inference", 1), ("inference", batch))
    kinds = dict.fromkeys(kind for kind in kinds if kind[0] in modes)
    return [[Task(system, network, *kind, *common) for system in systems] for kind in kinds]


def _networks(arguments: list[str] | None, platform: str) -> dict[str, int]:
    """Returns the images of a batch by network, from arguments such as "resnet18" and "resnet18=64"."""
    known = NETWORKS[platform]
    batches = {}
    for argument in arguments or known:
        name, _, batch = argument.partition("=")
        flaxcnn.model_info(name)
        if batch and not (batch.isdecimal() and int(batch)):
            raise UserError(f"--networks takes NAME or NAME=BATCH, got {argument!r}")
        if not batch and name not in known:
            raise UserError(f"--networks {name} has no batch here; write {name}=32, for one")
        batches[name] = int(batch) if batch else known[name]
    return batches


def pythons_of(flags: argparse.Namespace) -> dict[str, str]:
    """Returns the Python of each system."""
    return {name: getattr(flags, option) if option else sys.executable for name, (_, option) in SYSTEMS.items()}


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--networks", nargs="+", metavar="NAME[=BATCH]", help="by default a list for CPUs, and one for GPUs")
    add("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    add("--modes", nargs="+", choices=PASSES, default=list(PASSES))
    add("--turns", type=int, default=7, help="times that every system runs (7)")
    add("--seconds", type=float, default=2.0, help="about as long does each run in a turn (2)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--output", type=Path, help="of the files, without ending (benchmarks/results/networks-DEVICE)")
    add("--torch-python", default=sys.executable, help="a Python that has torch and torchvision")
    add("--keras-python", default=sys.executable, help="a Python that has keras, jax and optax")
    flags = parser.parse_args(argv)
    flags.systems = [
        name for name in SYSTEMS if name in flags.systems
    ]  # ours first: it is compared with the others
    if flags.turns < 1 or flags.seconds <= 0:
        parser.error("--turns and --seconds must be above 0")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Measures what the command line asks for, and writes the files after each network."""
    flags = _parse(argv)
    jax.config.update("jax_platforms", "cpu")  # of this process, which only counts; the systems take what is there
    command = [sys.executable, "-m", "benchmarks.machine", "--dtype", flags.dtype]
    rates = json.loads(subprocess.run(command, cwd=machine.ROOT, check=True, stdout=subprocess.PIPE).stdout)
    output = flags.output or default_output("networks", rates["device"], rates["platform"])
    networks = _networks(flags.networks, "cpu" if rates["platform"] == "cpu" else "gpu")
    records = Records(output.with_suffix(".json"), KEYS, machine.hardware(rates["device"], rates["platform"]))
    pythons = pythons_of(flags)
    revision = machine.revision()
    for network, batch in networks.items():
        for tasks in _tasks(network, batch, flags.dtype, flags.systems, flags.modes):
            title = f"{network}, {tasks[0].mode}, batch {tasks[0].batch}"
            if all(records.has(_settings(task), revision) for task in tasks):
                print(f"{title}: in {output}.json already, from {revision}", flush=True)
                continue
            rows = measure(tasks, pythons, flags.turns, flags.seconds, rates)
            records.add(rows, revision)
            print("\n".join([title, *map(network_report.line, rows)]), flush=True)
        network_report.write(records, output)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {first_line(error, 1000)}")
    except KeyboardInterrupt:
        sys.exit(130)
