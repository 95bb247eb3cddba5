"""How long `python train.py` takes to the end of its first training step: at the first start, and at the second.

    python -m benchmarks.first_step --output benchmarks/results/first_step.json
    python -m benchmarks.first_step --run= --run=--config=configs/fashion_mnist/resnet.py

Each repeat begins with an empty folder of compiled programs, starts a run in a new work directory, ends it after
its first step, and does the same once more in another one with the programs that are there now. What is timed is
when the run's own lines arrive: one when all is imported and the data set is open, one when data are decoded,
parameters initialised and the step compiled, one when the first step is done. Beside it stand the processor
seconds of all threads, which say more on a machine that does other work as well. One run, which is not counted,
comes before: it prepares the data set, and has the files read that all others read.
"""

import argparse
import itertools
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine

PARTS = {
    " training and ": "imports, opening the data",
    "; compiled in ": "decoding, initialising, compiling",
    "first step done ": "first step",
}
STARTS = ("first start", "second start")


def time_start(flags: str, cache: Path, workdir: Path) -> dict[str, float]:
    """Starts a run, ends it after its first step, and returns the seconds of its parts, and of processors."""
    command = [sys.executable, "train.py", *shlex.split(flags), f"--workdir={workdir}"]
    environment = os.environ | {"FLAXCNN_CACHE": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    used, start = _processor_seconds(), time.perf_counter()
    parts, before = {}, start
    with subprocess.Popen(command, cwd=machine.ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            now = time.perf_counter()
            for mark, part in PARTS.items():
                if mark in line and part not in parts:
                    parts[part], before = now - before, now
            if len(parts) == len(PARTS):
                break
        process.kill()
    if len(parts) < len(PARTS):
        raise SystemExit("error: the run ended before its first step did")
    return parts | {"all": now - start, "processor seconds": _processor_seconds() - used}


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measures, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", metavar="FLAGS", help="of train.py; may be given again")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        workdirs = (Path(folder, f"run{number}") for number in itertools.count())
        for flags in arguments.run or [""]:
            time_start(flags, Path(folder, "uncounted"), next(workdirs))
            times = {start: [] for start in STARTS}
            for _ in range(arguments.repeats):
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    for rows in times.values():
                        rows.append(time_start(flags, Path(cache), next(workdirs)))
            found[f"python train.py {flags}".strip()] = times
            print(f"\npython train.py {flags}\nseconds, median of {arguments.repeats} (range)")
            for start, rows in times.items():
                for part in rows[0]:
                    values = [row[part] for row in rows]
                    spread = f"({min(values):.1f} to {max(values):.1f})"
                    print(f"  {start:<13} {part:<34} {statistics.median(values):>6.1f}  {spread}")
            for part in ("all", "processor seconds"):
                pairs = zip(*times.values(), strict=True)
                share = statistics.median(second[part] / first[part] for first, second in pairs)
                print(f"  second start, of the first: {share:.0%} of {part}", flush=True)
    if arguments.output:
        report = {"hardware": machine.hardware(), "seconds": found}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
