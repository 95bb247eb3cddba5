"""How quick convolutions would be by oneDNN, which jaxlib's x86 wheels hold, beside Eigen; and why it is not used.

    python -m benchmarks.onednn --output benchmarks/results/onednn.json

XLA reaches oneDNN by a custom call that no documentation names. It is right and quick, but jaxlib cannot write a
program that holds it: the last line says what became of an attempt, made in a process of its own, to put one into
JAX's cache of compiled programs.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from benchmarks import machine, stock
from benchmarks.turns import calls_of, quartiles, speed_ratios, steps_for, take_turns
from flaxcnn import launch
from flaxcnn.ops.convolution import convolution

# Images, height and width, channels, features, window, stride, groups.
CASES = (
    (32, 56, 64, 64, 3, 1, 1),
    (32, 28, 128, 128, 3, 1, 1),
    (32, 14, 256, 256, 3, 1, 1),
    (32, 7, 512, 512, 3, 1, 1),
    (32, 56, 64, 128, 3, 2, 1),
    (32, 224, 3, 64, 7, 2, 1),
    (32, 28, 128, 512, 1, 1, 1),
    (8, 56, 128, 128, 3, 1, 32),
    (1, 56, 64, 64, 3, 1, 1),
)
SECONDS, TURNS = 0.3, 9
ATTEMPT = """
import jax
from benchmarks import onednn
x, kernel = onednn.arrays(4, 12, 8, 16, 3, 1, 1)
jax.jit(lambda x, kernel: onednn.by_onednn(x, kernel, 1, 1) + 1)(x, kernel)
"""


def arrays(images: int, size: int, channels: int, features: int, window: int, stride: int, groups: int) -> tuple:
    """Returns maps and a kernel of a case."""
    keys = jax.random.split(jax.random.key(0))
    kernel = jax.random.normal(keys[1], (window, window, channels // groups, features))
    return jax.random.normal(keys[0], (images, size, size, channels)), kernel


def by_onednn(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Convolves maps (B, H, W, C), framed by half a window of zeros, on a CPU."""
    padding = kernel.shape[0] // 2
    rows, columns = ((size + 2 * padding - kernel.shape[0]) // stride + 1 for size in x.shape[1:3])
    maps = {"dims": 4, "data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    weights = {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}
    settings = {
        "dims": 4,
        "input": maps,
        "kernel": {"dims": 4, "filter": weights},
        "output": maps,
        "window": {
            "pad_left": [padding] * 2,
            "pad_right": [padding] * 2,
            "strides": [stride] * 2,
            "window_dilations": [1, 1],
        },
        "feature_groups": groups,
    }
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct((x.shape[0], rows, columns, kernel.shape[3]), x.dtype),
        custom_call_api_version=1,
        legacy_backend_config=json.dumps({"onednn_conv_config": settings}),
    )
    return call(x, kernel)


def measure(case: tuple[int, ...]) -> dict:
    """Returns the multiply-adds/s of oneDNN, of Eigen and of flaxcnn's convolution, forward."""
    *_, window, stride, groups = case
    x, kernel = arrays(*case)
    fields = {
        "window_strides": (stride, stride),
        "padding": [(window // 2, window // 2)] * 2,
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        "feature_group_count": groups,
    }
    functions = {
        "oneDNN": functools.partial(by_onednn, stride=stride, groups=groups),
        "Eigen": functools.partial(stock.convolution, **fields),
        "flaxcnn": functools.partial(convolution, **fields),
    }
    programs = {name: jax.jit(function) for name, function in functions.items()}
    results = {name: program(x, kernel) for name, program in programs.items()}
    for result in results.values():
        stock.assert_close(result, results["Eigen"], 1e-5)

    runs = {name: calls_of(program, x, kernel) for name, program in programs.items()}
    found = take_turns(runs, {name: steps_for(run, SECONDS) for name, run in runs.items()}, TURNS)
    macs = results["Eigen"].size * kernel.size // kernel.shape[3]
    return {
        "images, size, channels, features, window, stride, groups": case,
        "macs_per_second": {name: macs / quartiles(seconds)[1] for name, seconds in found.items()},
        "oneDNN, times as fast as flaxcnn": speed_ratios(found["oneDNN"], found["flaxcnn"]),
    }


def try_to_keep() -> str:
    """Returns what JAX says when it is to keep a program with such a call on disk."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-c", ATTEMPT]
        done = subprocess.run(
            command, cwd=machine.ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
        )
    said = [line for line in done.stderr.splitlines() if "Error" in line]
    return said[-1] if said else f"no complaint; it ended with code {done.returncode}"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    output = parser.parse_args().output
    rows = []
    for case in CASES:
        rows.append(measure(case))
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rows[-1]["macs_per_second"].items())
        print(f"{case}: {rates} Gmac/s", flush=True)
    kept = try_to_keep()
    print(kept)
    if output:
        report = {
            "hardware": machine.hardware(),
            "jaxlib": importlib.metadata.version("jaxlib"),
            "cases": rows,
            "kept": kept,
        }
        output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    launch.prepare_process()
    main()
