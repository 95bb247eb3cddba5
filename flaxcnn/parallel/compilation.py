"""The cache of compiled programs on disk, and compiler options for programs that run only a few times."""

import functools
import os
import platform
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from flaxcnn.cache import cache_folder


def keep_compiled_programs() -> None:
    """Enables JAX's persistent compilation cache, unless the user has configured or disabled it."""
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is None and settings["jax_enable_compilation_cache"]:
        # A program is compiled for the instructions of one CPU, which JAX's cache key leaves out. Machines with
        # other CPUs may share the home directory.
        folder = cache_folder("compiled") / f"{platform.machine()}-{zlib.crc32(_cpu()):08x}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def quick_compile() -> dict[str, Any]:
    """Returns compiler options for a program that runs only a few times.

    On a CPU, XLA then compiles in a third of the time, and the program computes the same values. On other devices
    the options are empty. Training steps do not use these options: they are fully optimized.
    """
    # Not 0: LLVM would not optimize loops, and initializing VGG-11 would take eight times as long.
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def cheap_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `jax.jit(function)` with the compiler options of `quick_compile`.

    JAX looks for devices at the first call, not when this decorator is applied.
    """

    @functools.cache
    def program() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=quick_compile())

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return program()(*arguments)

    return call


def _cpu() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
