"""The number of CPU cores that this process may use."""

import contextlib
import os
from pathlib import Path

# The CPU limit of the container, such as "250000 100000": microseconds of CPU time per period, and length of the
# period in microseconds. The first is "max" if there is no limit.
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Returns the number of cores allowed by CPU affinity and the container's limit, rounded down, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        allowance, period = _CONTAINER_LIMIT.read_text().split()
        cores = min(cores, max(1, int(allowance) // int(period)))
    return cores
