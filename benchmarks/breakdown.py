"""Where the time of a step goes, by kind of operation: flaxcnn beside torch, by their own profilers.

    python -m benchmarks.breakdown --networks resnet18 resnext50_32x4d --torch-python PYTHON

Each system has a process of its own and runs some steps under its profiler, one system after the other. A profiled
step takes somewhat longer than another one. XLA may run several operations at a time: they have equal shares of it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import machine
from benchmarks.networks import NETWORKS, PASSES, SYSTEMS, pythons_of
from benchmarks.records import Records, Row, default_output, table
from benchmarks.systems.serve import Task
from benchmarks.worker import Failure, Worker
from flaxcnn.errors import UserError, first_line
from flaxcnn.models import model_info

KEYS = ("network", "mode", "batch", "dtype", "system")
KINDS = ("convolution", "product", "sum", "norm", "other")


def markdown(rows: list[Row]) -> str:
    """Returns a table: milliseconds of a step by kind."""
    lines = []
    for row in rows:
        line = [f"{row['network']}, {row['mode']}, {row['batch']}, {row['dtype']}", row["system"]]
        if reason := row.get("absent") or row.get("failed"):
            lines.append([*line, reason, *[""] * len(KINDS)])
            continue
        kinds = [f"{1e3 * row['seconds'][kind]:,.1f}" if kind in row["seconds"] else "" for kind in KINDS]
        lines.append([*line, f"{1e3 * sum(row['seconds'].values()):,.1f}", *kinds])
    return "Milliseconds of a step.\n\n" + table(("network", "system", "all", *KINDS), lines)


def main() -> None:
    """Profiles what the command line asks for, and writes the files after each system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    platform, device = machine.device()
    known = NETWORKS["cpu" if platform == "cpu" else "gpu"]
    add = parser.add_argument
    add("--networks", nargs="+", choices=known, default=list(known), metavar="NAME")
    add("--systems", nargs="+", choices=SYSTEMS, default=["ours", "torch"])
    add("--modes", nargs="+", choices=PASSES, default=["training"])
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--steps", type=int, default=5, help="under the profiler (5)")
    add("--output", type=Path, help="of the files, without ending (benchmarks/results/breakdown-DEVICE)")
    add("--torch-python", default=sys.executable, help="a Python that has torch and torchvision")
    add("--keras-python", default=sys.executable, help="a Python that has keras, jax and optax")
    flags = parser.parse_args()
    output = flags.output or default_output("breakdown", device, platform)
    records = Records(output.with_suffix(".json"), KEYS, machine.hardware(device, platform))
    tasks = [
        Task(system, name, mode, known[name], info.input_shape, info.num_classes, flags.dtype, machine.cores())
        for name, info in ((name, model_info(name)) for name in flags.networks)
        for mode in flags.modes
        for system in flags.systems
    ]
    pythons, revision = pythons_of(flags), machine.revision()
    for task in tasks:
        row = {key: getattr(task, key) for key in KEYS}
        with tempfile.TemporaryDirectory() as cache:
            try:
                module, _ = SYSTEMS[task.system]
                with Worker(task, pythons[task.system], module, Path(cache)) as worker:
                    worker.run(2)
                    row["seconds"] = worker.profile(flags.steps)
            except Failure as failure:
                row[failure.key] = str(failure)
        records.add([row], revision)
        print(markdown([row]).splitlines()[-1], flush=True)
    records.write_csv()
    records.write_markdown(markdown(records.rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {first_line(error, 1000)}")
