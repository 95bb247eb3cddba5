"""Runs with several processes: connecting them, comparing values across them, and raising errors in all."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxcnn.errors import UserError, first_line

# Seconds without a heartbeat after which a process counts as dead and the others end.
HEARTBEAT_TIMEOUT = 100
# Environment variables with the number of processes that SLURM's srun or Open MPI's mpirun has started.
_PROCESS_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def initialize(coordinator: str = "auto", num_processes: int | None = None, process_id: int | None = None) -> None:
    """Connects the processes of a run. Must be called before JAX looks for devices.

    Args:
      coordinator: "auto" connects the processes that SLURM, Open MPI or a TPU pod has started, as environment
        variables say, and does nothing if there are none. "cluster" connects the processes of any launcher that
        JAX detects. "none" does nothing. HOST:PORT is the address at which process 0 listens; it requires the two
        other arguments.
      num_processes: number of processes of the run.
      process_id: index of this process, counted from 0.

    Raises:
      UserError: the arguments are inconsistent, or JAX detects no launcher. If a process is missing after five
        minutes, JAX ends this process.
    """
    explicit = coordinator not in ("auto", "cluster", "none")
    if explicit != (num_processes is not None) or explicit != (process_id is not None):
        raise UserError("--coordinator=HOST:PORT, --num_processes and --process_id go together; give all or none")
    if explicit and not (":" in coordinator and coordinator.rsplit(":", 1)[1].isdecimal()):
        raise UserError(f"--coordinator is {coordinator!r}; write HOST:PORT of process 0, or auto, cluster or none")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise UserError(f"--process_id is {process_id}; it must be 0 or more and below {num_processes}")
    if coordinator == "none" or (coordinator == "auto" and not _launched_together()):
        return
    arguments: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT}
    if explicit:
        arguments |= {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            # Otherwise JAX would let a launcher, if it detects one, choose the devices of this process.
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError, KeyError) as error:
        hint = "" if explicit else "; give --coordinator=HOST:PORT, --num_processes and --process_id"
        raise UserError(f"cannot join the other processes: {first_line(error)}{hint}") from error


def _launched_together() -> bool:
    counts = [os.environ.get(name, "") for name in _PROCESS_COUNTS]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return any(count.isdecimal() and int(count) > 1 for count in counts) or "," in hosts


def is_primary() -> bool:
    """Returns whether this is process 0, which prints messages and writes records."""
    return jax.process_index() == 0


def leave(code: int) -> int:
    """Returns `code`, the exit code; with several processes, ends this one at once instead.

    Other processes may be waiting for this one in a collective, so it must not wait for them when it exits.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def assert_equal_across_processes(what: str, value: str) -> None:
    """Raises a `UserError` that names `what` in all processes, unless `value` is equal in all of them."""
    if jax.process_count() > 1:
        digest = np.frombuffer(hashlib.sha256(value.encode()).digest()[:4], np.int32)
        if len(set(multihost_utils.process_allgather(digest).ravel().tolist())) > 1:
            raise UserError(f"{what} that the processes find are not the same; give all of them the same files")


def minimum_across_processes(count: int) -> int:
    """Returns the minimum of a number of bytes over all processes; of several, rounded down to whole MiB."""
    if jax.process_count() == 1:
        return count
    # In MiB, because JAX gathers integers of 32 bits.
    return int(multihost_utils.process_allgather(np.array(count >> 20, np.int32)).min()) << 20


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """Context manager that raises in all processes if its block raises `UserError` or `OSError` in one of them."""
    own: Exception | None = None
    try:
        yield
    except (UserError, OSError) as error:
        own = error
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(own is not None)))
        if own is None and len(failed):
            own = UserError(f"process {failed[0]} cannot go on; it says why")
    if own is not None:
        raise own
