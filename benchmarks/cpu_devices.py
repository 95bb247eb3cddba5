"""How much quicker a training step is with one XLA device a core of the CPU than with one for all of them.

    python benchmarks/cpu_devices.py --output benchmarks/results/cpu_devices.json

One process has one device, the other as many as it may use cores. Both hold the same compiled step, of synthetic
images, and run it by turns, some steps a turn, so that what else the machine does meets both alike. BatchNorm
normalises over the whole batch in both. A figure is the median, over pairs of turns, of how many times as quick the
second was; the ends of the 2nd and of the 9th tenth show how far the pairs spread.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from flaxcnn import launch

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
    from flaxcnn.training.parallel import Strategy
    from flaxcnn.training.state import create_state
    from flaxcnn.training.step import make_train_step

    name, options, size, channels, batch_size = CASES[case]
    strategy = Strategy()
    model = strategy.synchronized(flaxcnn.create_model(name, num_classes=10, **options))
    optimizer = optax.sgd(0.01, momentum=0.9)
    train_step = make_train_step(model, optimizer, lambda images, key, visits: images.astype(np.float32) / 255)
    plain = model.clone(bn_axis_name=None) if hasattr(model, "bn_axis_name") else model

    def create():
        return create_state(plain, optimizer, seed=0, input_shape=(size, size, channels))

    _, creation = strategy.creation(create)
    state = creation()
    random = np.random.default_rng(0)
    batch = strategy.split(
        {
            "image": random.integers(0, 256, (batch_size, size, size, channels), np.uint8),
            "label": random.integers(0, 10, batch_size).astype(np.int32),
            "mask": np.ones(batch_size, np.float32),
        }
    )
    program = strategy.compile(train_step, (state, batch), split=(1,), donate=(0,))
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            state, _ = program(state, batch)
        jax.block_until_ready(state)
        print(time.perf_counter() - start, flush=True)


def measure(case: int, devices: int, pairs: int) -> tuple[list[float], list[float]]:
    """Returns the seconds of a step in each turn, with one device and with several."""
    with contextlib.ExitStack() as stack:
        workers = []
        for count in (1, devices):
            command = [sys.executable, __file__, "--worker", str(case), str(count)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            workers.append(stack.enter_context(subprocess.Popen(command, text=True, **pipes)))

        def turn(process: subprocess.Popen, steps: int) -> float:
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            return float(process.stdout.readline()) / steps

        for process in workers:
            process.stdout.readline()
        for process in workers:
            turn(process, 2)
        steps = max(1, round(SECONDS / turn(workers[0], 2)))
        found = ([], [])
        for pair in range(pairs):
            for which in (0, 1) if pair % 2 else (1, 0):  # whoever begins, begins as often second
                turn(workers[which], 1)  # brings back into caches what the other one has driven out
                found[which].append(turn(workers[which], steps))
        for process in workers:
            process.stdin.close()
    return found


def main() -> None:
    """Measures every case, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--devices", type=int, default=len(os.sched_getaffinity(0)))
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
        one, several = measure(case, arguments.devices, arguments.pairs)
        ratios = [a / b for a, b in zip(one, several, strict=True)]
        tenths = statistics.quantiles(ratios, n=10, method="inclusive")
        result = {
            "network": name,
            "options": options,
            "image_size": size,
            "batch_size": batch_size,
            "ms_one_device": 1e3 * statistics.median(one),
            "ms_device_a_core": 1e3 * statistics.median(several),
            "times_as_quick": statistics.median(ratios),
            "tenths": [tenths[1], tenths[-1]],
        }
        results.append(result)
        print(
            f"{name:<16}{size:>4}px  batch {batch_size:>4} {result['ms_one_device']:>8.1f} ms"
            f"{result['ms_device_a_core']:>8.1f} ms  {result['times_as_quick']:.2f}"
            f"  ({tenths[1]:.2f} to {tenths[-1]:.2f})  {options or ''}",
            flush=True,
        )
    if arguments.output:
        report = {"hardware": _hardware(), "devices": arguments.devices, "pairs": arguments.pairs, "steps": results}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def _hardware() -> dict[str, str | int]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return {"cpu": line.split(":", 1)[1].strip(), "cores": os.cpu_count() or 1}
    return {"cpu": platform.processor(), "cores": os.cpu_count() or 1}


if __name__ == "__main__":
    launch.prepare_process()  # as train.py does
    main()
