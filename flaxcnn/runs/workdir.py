"""The work directory of a run: its files, and the checks before a run starts or continues in it.

run.json          configuration, data set, devices, package versions and git revision of the run
checkpoints/      one folder per checkpoint, named by its step
lock              file that is locked while a run writes to the folder
damaged/          checkpoints that could not be read
profile/          profiler traces
metrics.jsonl     one record per line
events.out.*      the same records for TensorBoard
results.json, *.png   the final evaluation
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from flaxcnn.atomic import write_whole
from flaxcnn.config import TrainConfig, from_dict, to_dict
from flaxcnn.config.changes import Change, changes
from flaxcnn.errors import UserError
from flaxcnn.parallel.processes import is_primary, raise_on_all_processes

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_run(workdir: Path) -> dict[str, Any]:
    """Returns the content of `run.json`.

    Raises:
      UserError: the folder holds no run, or `run.json` is damaged.
    """
    path = workdir / RUN_FILE
    try:
        run = json.loads(path.read_text())
        if not (isinstance(run, dict) and isinstance(run.get("config"), dict) and "data" in run):
            raise UserError(f"{path} is not the record of a run")
        return run
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{workdir} holds no run ({RUN_FILE} is missing); train with --workdir={workdir}") from None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def check_usable(workdir: Path, config: TrainConfig, data: Mapping[str, Any]) -> list[Change]:
    """Checks that a run may start or continue in a work directory, without writing anything.

    Args:
      workdir: the work directory.
      config: configuration of the run.
      data: record of the dataset: class names, image shape, fingerprint of the training split.

    Returns:
      The leaves of `config` that differ from those of the run in the work directory; empty if it holds no
      checkpoint.

    Raises:
      UserError: the work directory cannot be written to, or holds checkpoints of another experiment.
    """
    try:
        existing = workdir
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
    except OSError as error:
        raise UserError(f"work directory {workdir} cannot be made: {error.strerror}") from None
    if not existing.is_dir():
        raise UserError(f"work directory {workdir} cannot be made: {existing} is not a folder")
    for folder in (existing, workdir / CHECKPOINTS):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"work directory {workdir} cannot be written to: no permission on {folder}")
    if not has_checkpoints(workdir):
        return []
    run = read_run(workdir)
    _check_same_data(workdir, run["data"], data)
    # `from_dict` gives leaves that an older record lacks their defaults. JSON turns tuples into lists in both.
    before, now = (json.loads(json.dumps(to_dict(each))) for each in (from_dict(run["config"]), config))
    found = changes(before, now)
    if other := [change for change in found if change.is_identity]:
        differences = ", ".join(f"{each.path} {each.before!r}, not {each.now!r}" for each in other[:3])
        raise UserError(f"{workdir} holds another experiment ({differences}); choose another --workdir")
    return found


def has_checkpoints(workdir: Path) -> bool:
    """Returns whether a work directory holds a finished checkpoint."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


@contextlib.contextmanager
def opened(
    workdir: Path, config: TrainConfig, data: Mapping[str, Any], execution: Mapping[str, Any]
) -> Iterator[None]:
    """Context manager that creates a work directory and locks it, so that no other run can write to it.

    It also writes `run.json` if there is no checkpoint. A run that continues calls `record` before its first step.
    With several processes, process 0 does all this, and the others wait for `run.json`.

    Args:
      workdir: the work directory.
      config: configuration of the run.
      data: see `check_usable`.
      execution: see `record`.

    Raises:
      UserError: the work directory cannot be written to, is locked by another process, or is not shared by all
        processes.
    """
    with contextlib.ExitStack() as stack:
        with raise_on_all_processes():
            if is_primary():
                try:
                    workdir.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(_locked(workdir))
                    if not has_checkpoints(workdir):
                        record(workdir, config, data, execution)
                except OSError as error:
                    raise UserError(f"work directory {workdir} cannot be written to: {error.strerror}") from None
        with raise_on_all_processes():
            deadline = time.monotonic() + 60  # a network file system may show the file late
            while not (workdir / RUN_FILE).is_file() and time.monotonic() < deadline:
                time.sleep(0.5)
            if not (workdir / RUN_FILE).is_file():
                raise UserError(f"work directory {workdir} is another folder on each host; name one that all share")
        yield


def record(workdir: Path, config: TrainConfig, data: Mapping[str, Any], execution: Mapping[str, Any]) -> None:
    """Writes `run.json`, the record of a run.

    Args:
      workdir: the work directory.
      config: configuration of the run.
      data: see `check_usable`.
      execution: how the run computes: strategy, devices, micro-batches, memory, seconds to compile.
    """
    run = {
        "config": to_dict(config),
        "data": dict(data),
        "execution": dict(execution),
        "environment": _environment(),
    }
    write_json(workdir / RUN_FILE, run)


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Context manager that locks a work directory. The system unlocks it if the process is killed."""
    descriptor = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {workdir}; choose another --workdir") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # file systems without locks
                raise
        yield
    finally:
        os.close(descriptor)


def _environment() -> dict[str, Any]:
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "tensorflow-datasets",
        "numpy",
        "flaxcnn",
    )
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """Returns the git commit of this package, with "+changes" if files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).resolve().parent
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _check_same_data(workdir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if list(before["class_names"]) != list(now["class_names"]):
        raise UserError(f"{workdir} was trained on other classes; choose another --workdir")
    if before.get("fingerprint") != now["fingerprint"]:
        raise UserError(
            f"the training images are no longer those that {workdir} was trained on, so the run cannot continue "
            f"exactly; put them back, or choose another --workdir"
        )
