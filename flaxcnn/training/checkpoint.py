"""Checkpoints through orbax: atomic, written in the background, the newest few and the best kept."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from flaxcnn.errors import UserError
from flaxcnn.training.distributed import is_primary, together
from flaxcnn.training.state import Carry
from flaxcnn.training.workdir import CHECKPOINTS


class Checkpoints:
    """The checkpoints of a work directory, by step; a context that ends when everything is written."""

    def __init__(self, workdir: Path, *, keep: int | None = None):
        """Opens them to write, keeping the `keep` newest and the best, or only to read if `keep` is None."""

        def accuracy(metrics: dict[str, float]) -> float:
            return metrics["accuracy"]

        logging.get_absl_logger().addFilter(_is_news)
        kept = [
            checkpoint_managers.LatestN(keep or 1),
            checkpoint_managers.BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=accuracy,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=keep is not None,  # of runs that were killed while they saved
            read_only=keep is None,
        )
        self._folder = (workdir / CHECKPOINTS).resolve()
        self._damaged = self._folder.with_name("damaged")
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.finish()
        except UserError:
            if kind is None:
                raise
        finally:
            self._manager.close()

    def finish(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: it could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()

    def save(self, step: int, carry: Carry, accuracy: float | None) -> None:
        """Starts to write a checkpoint; the caller may donate its arrays at once.

        Args:
          step: names the checkpoint.
          carry: what `restore` gives back.
          accuracy: on the test split, if it was evaluated at this step; the highest marks the best checkpoint.

        Raises:
          UserError: it, or the one before it, could not be written.
        """
        # Orbax may still read the arrays while the next step overwrites them, so it gets arrays of its own.
        snapshot = jax.tree.map(jnp.copy, carry)
        metrics = None if accuracy is None else {"accuracy": accuracy}
        with self._explained():  # also what went wrong with the one before, in the background
            self._manager.save(step, args=ocp.args.StandardSave(snapshot), metrics=metrics)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest test accuracy, or None if none was evaluated."""
        return self._manager.best_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, like: Carry) -> Carry:
        """Returns what was saved at a step, with the structure, shapes, dtypes and shardings of `like`.

        Raises:
          UserError: it holds something else, or is damaged.
        """
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # orbax and what lies below it raise all kinds
            raise UserError(
                f"checkpoint {step} is damaged, or does not fit this network and optimizer: {_first_line(error)}"
            ) from error

    def restore_newest(self, like: Carry, warn: Callable[[str], None]) -> Carry | None:
        """Returns the newest checkpoint that can be read, or None if there is none at all.

        Newer ones, which cannot, are moved out of the way, into `damaged/` of the work directory, with a warning.

        Raises:
          UserError: there are checkpoints, and none can be read; all stay where they are.
        """
        failures: dict[int, UserError] = {}
        carry = None
        for step in reversed(self.steps):
            try:
                with together():
                    carry = self.restore(step, like)
                break
            except UserError as error:
                failures[step] = error
        if failures and carry is None:
            raise next(iter(failures.values()))
        for error in failures.values():
            warn(f"warning: {error}; taking the one before it, and keeping this in {self._damaged.name}/")
        if failures:
            if is_primary():
                self._damaged.mkdir(exist_ok=True)
                for step in failures:
                    target = self._damaged / f"{step}-{time.strftime('%Y%m%dT%H%M%S')}"
                    (self._folder / str(step)).rename(target)
            with together():
                self._manager.reload()
        return carry

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and what lies below it raise all kinds
            reason = "no space left on the device" if "No space left" in str(error) else _first_line(error)
            raise UserError(
                f"a checkpoint could not be written: {reason}; those before it are whole, and the same command "
                f"continues from the newest"
            ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _is_news(record: Any) -> bool:
    known = (
        "did not provide metrics",
        "read_only=True",
        "directory is read only",
        "Metadata file does not exist",
        "Reached preemption sync point",
    )
    return not any(message in record.getMessage() for message in known)
