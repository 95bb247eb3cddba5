"""Compiled programs kept on disk, so that the second start does not compile."""

import os
import platform
import zlib
from pathlib import Path

import jax

from flaxcnn.cache import cache_folder


def keep_compiled_programs() -> None:
    """Switches JAX's persistent compilation cache on, unless it has been set up or switched off already."""
    if jax.config.jax_compilation_cache_dir is None and jax.config.jax_enable_compilation_cache:
        # JAX's key does not know the CPU, for whose instructions a program is compiled; homes may be shared.
        folder = cache_folder("compiled") / f"{platform.machine()}-{zlib.crc32(_cpu()):08x}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _cpu() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
