"""The memory that a compiled step needs, and the number of micro-batches with which it fits a device."""

import os
from collections.abc import Callable
from typing import Any

import jax

from flaxcnn.errors import UserError
from flaxcnn.parallel.processes import minimum_across_processes
from flaxcnn.parallel.program import Program
from flaxcnn.parallel.strategy import Device


def device_bytes(device: Device) -> int:
    """Returns the memory of a device in bytes. CPU devices get equal parts of the machine's memory."""
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return limit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def memory_for_data() -> int:
    """Returns the bytes that a split may take on a device: a quarter of its memory, minimum over processes."""
    return minimum_across_processes(device_bytes(jax.local_devices()[0]) // 4)


def program_bytes(program: Program) -> int:
    """Returns the peak memory of a program on one device in bytes, including its arguments and results."""
    analysis: Any = program.compiled.memory_analysis()
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return kept + analysis.temp_size_in_bytes


def find_program(
    compile_step: Callable[[int], Program],
    *,
    micro_batches: int | None,
    per_device_batch: int,
    limit: int,
    multiple: int = 1,
) -> tuple[Program, int]:
    """Compiles a training step, and checks that it fits into the memory of a device.

    Args:
      compile_step: `compile_step(count) -> program`, which compiles the step with `count` micro-batches.
      micro_batches: number of micro-batches. None takes the first that fits of 1 and further divisors of the
        per-device batch, each at least twice the one before.
      per_device_batch: number of examples per device.
      limit: memory of a device, in bytes.
      multiple: the size of each micro-batch must be a multiple of this: 2 if images are mixed in pairs, else 1.

    Returns:
      (program, number of micro-batches).

    Raises:
      UserError: the given number of micro-batches does not fit; the message names a number that fits, if any. Or
        no number fits.
    """
    tried: dict[int, int] = {}
    for count in _candidates(per_device_batch // multiple, micro_batches or 1):
        try:
            program = compile_step(count)
            tried[count] = program_bytes(program)
        except jax.errors.JaxRuntimeError as error:  # some compilers report that the step does not fit
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            tried[count] = limit + 1
        if tried[count] <= limit:
            if micro_batches in (None, count):
                return program, count
            break
    first, last = next(iter(tried)), next(reversed(tried))
    message = f"a step takes {as_text(tried[first])} of memory, and the device has {as_text(limit)}; "
    if tried[last] <= limit:
        raise UserError(f"{message}--config.parallel.micro_batches={last} takes {as_text(tried[last])}")
    raise UserError(
        f"{message}even {per_device_batch // last} images at a time take {as_text(tried[last])}: use more devices, "
        f"--config.model.options.remat=True (networks with blocks have it), a smaller data.image_size or "
        f"--config.model.dtype=bfloat16"
    )


def as_text(count: int) -> str:
    """Formats a number of bytes, such as "1.5 GiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _candidates(size: int, first: int) -> list[int]:
    counts = [first]
    for count in range(first + 1, size + 1):
        if size % count == 0 and count >= 2 * counts[-1]:
            counts.append(count)
    return counts
