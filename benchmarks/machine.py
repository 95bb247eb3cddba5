"""What figures were measured on: the machine's name, its matrix rate and its copy bandwidth.

python -m benchmarks.machine --dtype float32
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# Large enough to leave the caches, and small enough for a second or two of measuring.
CPU_ROWS, GPU_ROWS = 2048, 16384  # of a square matrix
CPU_BYTES, GPU_BYTES = 2**27, 2**32
# Vector instructions by Linux's names, the widest first. A virtual machine may hide what its model has.
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}


def cores() -> int:
    """Returns the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_fields() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_name() -> str:
    """Returns the model of the CPU."""
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def vectors() -> str:
    """Returns the widest vector instructions that the CPU has, or that they are not known."""
    fields = _cpu_fields()
    known = fields.get("flags", fields.get("Features", "")).split()
    return next((name for flag, name in VECTORS.items() if flag in known), "vectors unknown")


def hardware(device: str = "", platform: str = "cpu") -> dict[str, str | int]:
    """Returns what names the machine in a file of results; see `device` for the arguments."""
    gpu = {} if platform == "cpu" else {"device": device}
    return {**gpu, "cpu": cpu_name(), "vectors": vectors(), "cores": cores()}


def revision() -> str:
    """Returns the last commit of package and benchmarks, with "-dirty" if they differ from it, or "unknown"."""
    sources = ["--", "flaxcnn", "benchmarks", ":!benchmarks/results"]

    def git(*arguments: str) -> str:
        command = ["git", *arguments, *sources]
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # there is no git
            return ""

    commit = git("log", "-1", "--format=%h") or "unknown"
    return f"{commit}-dirty" if git("status", "--porcelain") else commit


def best_seconds(function: Callable[[], object], seconds: float) -> float:
    """Returns the shortest of the calls that fit into some seconds, after one to warm up."""
    function()
    found, end = [], time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def device() -> tuple[str, str]:
    """Returns JAX's platform, such as "cpu", and the name of the device that it computes on."""
    import jax

    first = jax.devices()[0]
    return first.platform, cpu_name() if first.platform == "cpu" else first.device_kind


def matrix_rate(dtype: str, seconds: float = 2.0) -> float:
    """Returns the multiply-adds/s of a square matrix product; of a CPU the faster one of XLA's and numpy's."""
    import jax
    import jax.numpy as jnp

    platform, _ = device()
    rows = CPU_ROWS if platform == "cpu" else GPU_ROWS
    matrix = jax.random.normal(jax.random.key(0), (rows, rows)).astype(dtype)
    product = jax.jit(jnp.matmul)
    shortest = best_seconds(lambda: product(matrix, matrix).block_until_ready(), seconds)
    if platform == "cpu" and dtype == "float32":
        host = np.asarray(matrix)
        shortest = min(shortest, best_seconds(lambda: host @ host, seconds))
    return rows**3 / shortest


def copy_bandwidth(seconds: float = 2.0) -> float:
    """Returns the bytes/s of a copy on the device, read and written."""
    import jax
    import jax.numpy as jnp

    size = CPU_BYTES if device()[0] == "cpu" else GPU_BYTES
    array, copy = jnp.zeros(size // 4, jnp.float32), jax.jit(jnp.negative)  # a bare copy would be no work at all
    return 2 * size / best_seconds(lambda: copy(array).block_until_ready(), seconds)


def main() -> None:
    """Prints the device and its rates as JSON."""
    parser = argparse.ArgumentParser(description="Measures the matrix rate and the copy bandwidth of a device.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    dtype = parser.parse_args().dtype
    platform, name = device()
    rates = {"macs_per_second": matrix_rate(dtype), "bytes_per_second": copy_bandwidth()}
    print(json.dumps({"platform": platform, "device": name, **rates}))


if __name__ == "__main__":
    main()
