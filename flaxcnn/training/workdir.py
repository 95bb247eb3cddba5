"""The work directory: what it holds, whose it is, and how a run finds its way back into it.

run.json          configuration, data set, devices, package versions and git revision of the run
checkpoints/      one folder a checkpoint, named by its step
lock              held while a run writes to the folder
damaged/          checkpoints that could not be read, moved out of the way
profile/          traces of steps that were asked for
metrics.jsonl     one record a line
events.out.*      the same for TensorBoard
results.json, *.png   the end of the run
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

from flaxcnn import config as config_lib
from flaxcnn.atomic import write_whole
from flaxcnn.config import TrainConfig
from flaxcnn.data.sources import FOLDER
from flaxcnn.errors import UserError
from flaxcnn.training.distributed import is_primary, together
from flaxcnn.training.experiment import Experiment, make_experiment

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"

# A run that continues from a checkpoint must agree with it on these, or it would be another experiment.
_IDENTITY = (
    "seed",
    "batch_size",
    "label_smoothing",
    "model",
    "data",
    "augment",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "optimizer.bias_weight_decay",
    "optimizer.norm_weight_decay",
    "optimizer.nesterov",
    "optimizer.clip_norm",
    "optimizer.ema_decay",
)
_NOT_IDENTITY = (
    "data.bad_images",
    "data.data_dir",
    "data.loading",
    "data.test_split",
    "data.workers",
    "model.options.remat",
)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_run(workdir: Path) -> dict[str, Any]:
    """Returns the content of `run.json`.

    Raises:
      UserError: the folder holds no run.
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


def open_experiment(workdir: Path) -> Experiment:
    """Returns the experiment whose run a work directory holds, without its data."""
    run = read_run(workdir)
    return make_experiment(
        config_lib.from_dict(run["config"]),
        tuple(run["data"]["class_names"]),
        tuple(run["data"]["image_shape"]),
    )


def check_usable(workdir: Path, config: TrainConfig, data: Mapping[str, Any]) -> list[str]:
    """Checks that a run may go into a folder, without writing anything.

    Args:
      workdir: the folder.
      config: of the run.
      data: what is kept of it: names of the classes, shape of an image, fingerprint of the training split.

    Returns:
      The leaves that the configuration changes since the run that the folder holds, as "name: old -> new".

    Raises:
      UserError: it cannot be written to, or holds checkpoints of another experiment.
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
    before, now = run["config"], json.loads(json.dumps(config_lib.to_dict(config)))  # which has lists for tuples
    changes = {path: (_get(before, path), _get(now, path)) for path in sorted(_paths(before) | _paths(now))}
    changes = {path: pair for path, pair in changes.items() if pair[0] != pair[1]}
    other = {path: pair for path, pair in changes.items() if _is_identity(path, *pair)}
    if other:
        differences = ", ".join(f"{path} {then!r}, not {this!r}" for path, (then, this) in list(other.items())[:3])
        raise UserError(f"{workdir} holds another experiment ({differences}); choose another --workdir")
    return [f"{path}: {then!r} -> {this!r}" for path, (then, this) in changes.items()]


def has_checkpoints(workdir: Path) -> bool:
    """Returns whether a finished checkpoint lies in a work directory."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


@contextlib.contextmanager
def opened(
    workdir: Path, config: TrainConfig, data: Mapping[str, Any], execution: Mapping[str, Any]
) -> Iterator[None]:
    """Makes the folder, records a new run in it, and keeps other runs out of it for the length of the block.

    Of several processes the first does so. A run that continues is recorded anew by `record`, if it takes a step.

    Args:
      workdir: the folder.
      config: of the run.
      data: see `check_usable`.
      execution: see `record`.

    Raises:
      UserError: it cannot be written to, another process is writing to it, or not all processes see it.
    """
    with contextlib.ExitStack() as stack:
        with together():
            if is_primary():
                try:
                    workdir.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(_locked(workdir))
                    if not has_checkpoints(workdir):
                        record(workdir, config, data, execution)
                except OSError as error:
                    raise UserError(f"work directory {workdir} cannot be written to: {error.strerror}") from None
        with together():
            deadline = time.monotonic() + 60  # a shared folder may show it late
            while not (workdir / RUN_FILE).is_file() and time.monotonic() < deadline:
                time.sleep(0.5)
            if not (workdir / RUN_FILE).is_file():
                raise UserError(f"work directory {workdir} is another folder on each host; name one that all share")
        yield


def record(workdir: Path, config: TrainConfig, data: Mapping[str, Any], execution: Mapping[str, Any]) -> None:
    """Writes `run.json`.

    Args:
      workdir: where to.
      config: of the run.
      data: see `check_usable`.
      execution: on which devices it runs, and how.
    """
    run = {
        "config": config_lib.to_dict(config),
        "data": dict(data),
        "execution": dict(execution),
        "environment": _environment(),
    }
    write_json(workdir / RUN_FILE, run)


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds a lock on a folder, which ends with the process, however that ends."""
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
    """The commit of the source, with "+changes" if files differ from it; None outside a git checkout."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).resolve().parent
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _paths(values: dict[str, Any], prefix: str = "") -> set[str]:
    paths: set[str] = set()
    for key, value in values.items():
        paths |= _paths(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return paths


def _get(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _check_same_data(workdir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if list(before["class_names"]) != list(now["class_names"]):
        raise UserError(f"{workdir} was trained on other classes; choose another --workdir")
    if before.get("fingerprint") != now["fingerprint"]:
        raise UserError(
            f"the pictures to train on are no longer those that {workdir} was trained on, so it cannot go on "
            f"exactly; put them back, or choose another --workdir"
        )


def _is_identity(path: str, before: Any, now: Any) -> bool:
    if path == "schedule.name":  # it keeps a state of its own
        return "plateau" in (before, now)
    if path == "data.name" and str(before).startswith(FOLDER) and str(now).startswith(FOLDER):
        return False  # the fingerprint tells whether they are the same
    return path not in _NOT_IDENTITY and any(path == key or path.startswith(key + ".") for key in _IDENTITY)
