"""Several processes as one run: how they find each other, agree, and notice that one of them is gone."""

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

# How long a process may be silent before all others give up, in seconds.
HEARTBEAT_TIMEOUT = 100
# Which variable says how many processes a launcher has started: SLURM's srun, Open MPI's mpirun.
_PROCESS_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def initialize(coordinator: str = "auto", num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes of a run, before JAX looks for devices; alone, it does nothing.

    Args:
      coordinator: "auto" joins what SLURM or Open MPI has started and what the variables of a TPU pod tell of;
        "cluster" joins whatever JAX detects; "none" runs alone; HOST:PORT is where process 0 listens, and takes the
        two others.
      num_processes: of the run.
      process_id: of this process, from 0.

    Raises:
      UserError: the arguments do not go together, or JAX finds no launcher. If the others do not come within five
        minutes, JAX itself ends the process.
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
            # Otherwise JAX would ask a launcher, if there is one, which of its devices are this process's.
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
    """Returns whether this is the process that prints and writes records."""
    return jax.process_index() == 0


def leave(code: int) -> int:
    """Returns an exit code; or, if there are other processes, which may wait for this one, ends it at once."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def agree(what: str, value: str) -> None:
    """Raises `UserError` in all processes unless they have the same value, of something called `what`."""
    if jax.process_count() > 1:
        digest = np.frombuffer(hashlib.sha256(value.encode()).digest()[:4], np.int32)
        if len(set(multihost_utils.process_allgather(digest).ravel().tolist())) > 1:
            raise UserError(f"{what} that the processes find are not the same; give all of them the same files")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that ends well in all processes or in none: where one raises a `UserError`, or `OSError`, all do."""
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
