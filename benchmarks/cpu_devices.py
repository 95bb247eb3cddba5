"""How much quicker a training step is with one XLA device a core of the CPU than with one for all of them.

    python -m benchmarks.cpu_devices --output benchmarks/results/cpu_devices.json

One process has one device, the other as many as it may use cores. Both hold the same compiled step, of synthetic
images, and run it by turns, some steps a turn, so that what else the machine does meets both alike. BatchNorm
normalises over the whole batch in both. A figure is the median, over the turns, of how many times as quick the
second was, between its quartiles.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import machine
from benchmarks.turns import Run, speed_ratios, steps_for, take_turns

# Network, options, image size, channels, batch size.
CASES = (
    ("lenet5", {}, 28, 1, 64),
    ("lenet5", {}, 28, 1, 256),
    ("lenet5", {"norm": "batch_norm"}, 28, 1, 128),
    ("alexnet", {}, 224, 3, 16),
    ("resnet18", {}, 96, 3, 16),
    ("vgg11", {}, 64, 3, 32),
)
SECONDS = 1.5  # of a turn, about


def worker(case: int, devices: int) -> None:
    """Compiles a step for so many devices, then takes as many as each line of standard input says."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_compilation_cache", False)
    import numpy as np
    import optax

    import flaxcnn
    from flaxcnn.parallel.strategy import Strategy
    from flaxcnn.training.state import create_state
    from flaxcnn.training.train_step import make_train_step

    name, options, size, channels, batch_size = CASES[case]
    strategy = Strategy()
    model = strategy.synchronized(flaxcnn.create_model(name, num_classes=10, **options))
    optimizer = optax.sgd(0.01, momentum=0.9)
    train_step = make_train_step(model, optimizer, lambda images, key, sample_ids: images.astype(np.float32) / 255)
    plain = model.clone(bn_axis_name=None) if hasattr(model, "bn_axis_name") else model

    def create():
        return create_state(plain, optimizer, seed=0, input_shape=(size, size, channels))

    _, creation = strategy.creation(create)
    state = creation()
    random = np.random.default_rng(0)
    batch = strategy.shard(
        {
            "image": random.integers(0, 256, (batch_size, size, size, channels), np.uint8),
            "label": random.integers(0, 10, batch_size).astype(np.int32),
            "mask": np.ones(batch_size, np.float32),
        }
    )
    program = strategy.compile(train_step, (state, batch), sharded=(1,), donate=(0,))
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            state, _ = program(state, batch)
        jax.block_until_ready(state)
        print(time.perf_counter() - start, flush=True)


@contextlib.contextmanager
def running(case: int, devices: int) -> Iterator[Run]:
    """A worker, as a function from a number of steps to the seconds that they took."""
    command = [sys.executable, "-m", "benchmarks.cpu_devices", "--worker", str(case), str(devices)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=machine.ROOT, text=True, **pipes) as process:
        process.stdout.readline()  # it is ready

        def run(steps: int) -> float:
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield run
        process.stdin.close()


def main() -> None:
    """Measures every case, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--devices", type=int, default=machine.cores())
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    results = []
    for case in arguments.cases:
        name, options, size, _, batch_size = CASES[case]
        with running(case, 1) as one, running(case, arguments.devices) as several:
            runs = {"one": one, "several": several}
            steps = {key: steps_for(run, SECONDS) for key, run in runs.items()}
            found = take_turns(runs, steps, arguments.turns)
        result = {
            "network": name,
            "options": options,
            "image_size": size,
            "batch_size": batch_size,
            "ms_one_device": 1e3 * statistics.median(found["one"]),
            "ms_device_a_core": 1e3 * statistics.median(found["several"]),
            "times_as_quick": speed_ratios(found["several"], found["one"]),
        }
        results.append(result)
        low, median, high = result["times_as_quick"]
        print(
            f"{name:<16}{size:>4}px  batch {batch_size:>4} {result['ms_one_device']:>8.1f} ms"
            f"{result['ms_device_a_core']:>8.1f} ms  {median:.2f}  ({low:.2f} to {high:.2f})  {options or ''}",
            flush=True,
        )
    if arguments.output:
        report = {"hardware": machine.hardware(), "devices": arguments.devices, "turns": arguments.turns}
        arguments.output.write_text(json.dumps({**report, "steps": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
