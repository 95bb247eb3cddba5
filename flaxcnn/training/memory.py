"""Whether a compiled step fits into memory, and into how many micro-batches it must be cut to fit."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxcnn.errors import UserError
from flaxcnn.training.parallel import Device, Program


def device_bytes(device: Device) -> int:
    """Returns the memory that a device has for arrays; devices of a CPU share the machine's."""
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return limit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def agreed(count: int) -> int:
    """Returns the least of all processes' numbers of bytes, so that all of them come to the same decisions."""
    if jax.process_count() == 1:
        return count
    # In MiB, because JAX sends 32 bits.
    return int(multihost_utils.process_allgather(np.array(count >> 20, np.int32)).min()) << 20


def program_bytes(program: Program) -> int:
    """Returns the most memory that a program takes on a device, its arguments and results included."""
    analysis: Any = program.compiled.memory_analysis()
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return kept + analysis.temp_size_in_bytes


def find_program(
    compile_step: Callable[[int], Program], *, wanted: int | None, share: int, limit: int, multiple: int = 1
) -> tuple[Program, int]:
    """Compiles a step that fits, and returns it with the number of its micro-batches.

    Args:
      compile_step: of a number of micro-batches.
      wanted: that number; None finds the least that fits, among divisors of `share` each about twice the last.
      share: examples of one device.
      limit: bytes of a device.
      multiple: of this many examples a micro-batch is made, because they are mixed.

    Raises:
      UserError: the wanted number does not fit, with one that does; or none does.
    """
    tried: dict[int, int] = {}
    for count in _candidates(share // multiple, wanted or 1):
        try:
            program = compile_step(count)
            tried[count] = program_bytes(program)
        except jax.errors.JaxRuntimeError as error:  # some compilers say themselves that it does not fit
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            tried[count] = limit + 1
        if tried[count] <= limit:
            if wanted in (None, count):
                return program, count
            break
    first, last = next(iter(tried)), next(reversed(tried))
    message = f"a step takes {as_text(tried[first])} of memory, and the device has {as_text(limit)}; "
    if tried[last] <= limit:
        raise UserError(f"{message}--config.parallel.micro_batches={last} takes {as_text(tried[last])}")
    raise UserError(
        f"{message}even {share // last} images at a time take {as_text(tried[last])}: use more devices, "
        f"--config.model.options.remat=True (networks with blocks have it), a smaller data.image_size or "
        f"--config.model.dtype=bfloat16"
    )


def as_text(count: int) -> str:
    """Returns a number of bytes as text."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _candidates(share: int, least: int) -> list[int]:
    counts = [least]
    for count in range(least + 1, share + 1):
        if share % count == 0 and count >= 2 * counts[-1]:
            counts.append(count)
    return counts
