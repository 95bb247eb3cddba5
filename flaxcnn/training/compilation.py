"""Compiling: programs kept on disk, so that the second start does not compile, and some made in haste."""

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
    """Switches JAX's persistent compilation cache on, unless it has been set up or switched off already."""
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is None and settings["jax_enable_compilation_cache"]:
        # JAX's key does not know the CPU, for whose instructions a program is compiled; homes may be shared.
        folder = cache_folder("compiled") / f"{platform.machine()}-{zlib.crc32(_cpu()):08x}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def in_haste() -> dict[str, Any]:
    """Returns the compiler options for a program that runs once or seldom.

    On a CPU, XLA compiles it in a third of the time, to the same values. A step is worth all optimisation.
    """
    # Not 0, at which LLVM leaves loops as they are: initialising VGG-11 then takes eight times as long.
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def jit_in_haste(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `jax.jit(function)` with the options of `in_haste`; no device is asked for before it is called."""

    @functools.cache
    def program() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=in_haste())

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
