"""Checkpoints with Orbax, written atomically in the background. The newest few and the best one are kept."""

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from flaxcnn.errors import UserError, first_line
from flaxcnn.parallel.processes import is_primary, raise_on_all_processes
from flaxcnn.runs.checksum import checksum, copy_with_checksums
from flaxcnn.runs.orbax_messages import is_news, quietly
from flaxcnn.runs.workdir import CHECKPOINTS, has_checkpoints

# A pytree of arrays.
Tree = Any
# Orbax's name for the tree in a checkpoint. It must not change, because existing checkpoints use it.
_ITEM = "carry"
_CONTINUE = "those before it are whole, and the same command continues from the newest"


class Checkpoints:
    """Saves and restores the checkpoints of a work directory, which are named by their step.

    It is a context manager, whose exit waits until all checkpoints are written.
    """

    def __init__(self, workdir: Path, *, keep: int | None = None):
        """Opens the checkpoints.

        Args:
          workdir: the work directory.
          keep: number of newest checkpoints to keep, besides the best one. None opens the checkpoints read-only.

        Raises:
          UserError: `keep` is None, and the accuracy of a checkpoint cannot be read.
        """
        self._keep = keep
        self._folder = (workdir / CHECKPOINTS).resolve()
        self._damaged = self._folder.with_name("damaged")
        self._warnings = self._set_aside_unreadable(self._damaged_metrics())

    @functools.cached_property
    def _manager(self) -> Any:
        """Orbax's checkpoint manager, created on first use.

        Importing Orbax takes half a second, longer than a new run needs to reach its first step.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        def accuracy(metrics: dict[str, float]) -> float:
            return metrics["accuracy"]

        logging.get_absl_logger().addFilter(is_news)
        kept = [
            checkpoint_managers.LatestN(self._keep or 1),
            checkpoint_managers.BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=accuracy,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=self._keep is not None,  # left by runs that were killed while saving
            read_only=self._keep is None,
        )
        # A checkpoint that is only read is read in parts, which needs this handler.
        handlers = {_ITEM: ocp.PyTreeCheckpointHandler()} if self._keep is None else None
        try:
            return ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
        except (KeyError, TypeError, ValueError):  # the metadata of a checkpoint
            self._warnings += self._set_aside_unreadable(self._damaged_metadata())
            return ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    @property
    def _is_open(self) -> bool:
        return "_manager" in vars(self)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.finish()
        except UserError:
            if kind is None:
                raise
        finally:
            if self._is_open:
                self._manager.close()

    def finish(self) -> None:
        """Waits until all checkpoints are on disk.

        Raises:
          UserError: a checkpoint could not be written.
        """
        if self._is_open:
            with self._explained():
                self._manager.wait_until_finished()

    def save(self, step: int, tree: Tree, accuracy: float | None) -> None:
        """Starts to write a checkpoint in the background. The arrays may be donated as soon as this returns.

        Args:
          step: step of the run, which names the checkpoint.
          tree: pytree of arrays to save.
          accuracy: test accuracy, or None if the step was not evaluated. The best checkpoint is the one with the
            highest accuracy.

        Raises:
          UserError: this checkpoint or the previous one could not be written.
        """
        import orbax.checkpoint as ocp

        self.finish()
        manager = self._manager
        with raise_on_all_processes():
            self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        # Orbax may still read the arrays while the next step overwrites them, so it gets copies.
        snapshot, sums, parts = copy_with_checksums(tree)
        metrics = None if accuracy is None else {"accuracy": accuracy}
        with self._explained():
            manager.save(
                step,
                args=ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(snapshot)}),
                metrics=metrics,
                custom_metadata={
                    "checksum": jax.device_get(sums).tolist(),
                    "parts": {part: each.tolist() for part, each in jax.device_get(parts).items()},
                },
            )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest test accuracy, or None if none was evaluated."""
        return self._manager.best_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, like: Tree) -> Tree:
        """Returns the tree that was saved at a step.

        Args:
          step: step of the checkpoint.
          like: tree of arrays, or abstract arrays, with the structure, shapes, dtypes and shardings to restore.

        Raises:
          UserError: the checkpoint has another structure, shape or dtype, or is damaged.
        """
        import orbax.checkpoint as ocp

        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        arguments = ocp.args.Composite(**{_ITEM: ocp.args.StandardRestore(abstract)})

        def read() -> tuple[Tree, list[int] | None]:
            saved = (self._manager.metadata(step).custom_metadata or {}).get("checksum")
            return self._manager.restore(step, args=arguments)[_ITEM], saved

        found, failure = quietly(read)
        if failure:
            raise UserError(f"checkpoint {step} is damaged, or does not fit this network and optimizer ({failure})")
        tree, saved = found
        dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (tree, like)]
        if saved is None or dtypes[0] != dtypes[1] or jax.device_get(checksum(tree)).tolist() != saved:
            raise UserError(f"checkpoint {step} is damaged (it is not what was saved)")
        return tree

    def restore_variables(self, step: int, *, averaged: bool = False) -> dict[str, Any]:
        """Returns the parameters and running statistics that were saved at a step, on the first device.

        The optimizer and its state are not needed. The checkpoints must be opened read-only.

        Args:
          step: step of the checkpoint.
          averaged: whether to return the moving averages of the arrays instead.

        Returns:
          {"params": ..., "batch_stats": ...}; the averages are an empty dict if the run keeps none.

        Raises:
          UserError: the checkpoint is damaged.
        """
        import orbax.checkpoint as ocp

        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        parts = ["ema"] if averaged else ["params", "batch_stats"]

        def read() -> tuple[dict[str, Any], Mapping[str, list[int]]]:
            saved = self._manager.item_metadata(step)[_ITEM].tree["state"]
            abstract = {
                part: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved[part])
                for part in parts
            }
            like = {"state": abstract}
            arguments = ocp.args.PyTreeRestore(
                like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
            )
            found = self._manager.restore(step, args=ocp.args.Composite(**{_ITEM: arguments}))[_ITEM]["state"]
            sums = (self._manager.metadata(step).custom_metadata or {}).get("parts", {})
            return {part: found.get(part) or {} for part in parts}, sums

        found, failure = quietly(read)
        if failure:
            raise UserError(f"checkpoint {step} is damaged ({failure})")
        variables, sums = found
        for part, tree in variables.items():  # checkpoints of earlier versions have no checksums of parts
            if part in sums and jax.device_get(checksum(tree)).tolist() != sums[part]:
                raise UserError(f"checkpoint {step} is damaged (it is not what was saved)")
        return variables["ema"] if averaged else variables

    def restore_newest(self, like: Tree, warn: Callable[[str], None]) -> Tree | None:
        """Returns the newest tree that can be restored, or None if there are no checkpoints.

        Newer checkpoints that cannot be restored are moved to `damaged/` in the work directory, with a warning.

        Args:
          like: see `restore`.
          warn: `warn(line)`, called with each warning.

        Raises:
          UserError: there are checkpoints, but none can be restored. Then none is moved.
        """
        if not (self._warnings or has_checkpoints(self._folder.parent)):
            return None
        failures: dict[int, UserError] = {}
        tree = None
        for step in reversed(self.steps):
            try:
                with raise_on_all_processes():
                    tree = self.restore(step, like)
                break
            except UserError as error:
                failures[step] = error
        if failures and tree is None:
            first = next(iter(failures.values()))
            raise UserError(f"no checkpoint in {self._folder} can be read: {first}; choose another --workdir")
        for line in [*self._warnings, *map(str, failures.values())]:
            warn(f"warning: {line}; taking the one before it, and keeping this in {self._damaged.name}/")
        if failures:
            with raise_on_all_processes():
                for step in failures:
                    self._set_aside(step)
            self._manager.reload()
        return tree

    def _damaged_metrics(self) -> dict[int, str]:
        """Returns the steps of checkpoints whose accuracy cannot be read, with the reason: Orbax would fail."""
        found = {}
        for path in sorted(self._folder.glob("[0-9]*/metrics/metrics")):
            try:
                float(json.loads(path.read_text())["accuracy"])
            except (ValueError, KeyError, TypeError):
                found[int(path.parent.parent.name)] = "its accuracy cannot be read"
        return found

    def _damaged_metadata(self) -> dict[int, str]:
        """Returns the steps of checkpoints whose metadata Orbax cannot read, with the reason."""
        from orbax.checkpoint.path import step as orbax_step

        found = {}
        for step in orbax_step.standard_name_format().find_all(self._folder):
            try:
                step.commit_timestamp  # noqa: B018
            except (KeyError, TypeError, ValueError):
                found[step.step] = "its metadata cannot be read"
        return found

    def _set_aside_unreadable(self, damaged: Mapping[int, str]) -> list[str]:
        """Moves damaged checkpoints to `damaged/`, and returns a message for each.

        Raises:
          UserError: there is one, and the folder is read-only.
        """
        lines = [f"checkpoint {step} is damaged ({reason})" for step, reason in damaged.items()]
        with raise_on_all_processes():
            if lines and self._keep is None:
                raise UserError(lines[0])
        with raise_on_all_processes():
            for step in damaged:
                self._set_aside(step)
        return lines

    def _set_aside(self, step: int) -> None:
        if is_primary():
            self._damaged.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(self._damaged / f"{step}-{time.strftime('%Y%m%dT%H%M%S')}")

    def _check_space(self, needed: int) -> None:
        """Raises `UserError` if the disk has too little space, before threads inside Orbax fail noisily."""
        free = shutil.disk_usage(self._folder).free
        if is_primary() and free < needed * 1.05 + 2**20:
            raise UserError(
                f"no space for a checkpoint: {self._folder} has {free / 2**20:.1f} MiB left, and it takes "
                f"{needed / 2**20 * 1.05 + 1:.1f}; {_CONTINUE}"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and its dependencies raise many types
            reason = "no space left on the device" if "No space left" in str(error) else first_line(error, 100)
            raise UserError(f"a checkpoint could not be written: {reason}; {_CONTINUE}") from error
