"""Checkpoints with Orbax, written atomically in the background. The newest few and the best one are kept."""

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from flaxcnn.errors import UserError, first_line
from flaxcnn.parallel.compilation import cheap_jit
from flaxcnn.parallel.processes import is_primary, raise_on_all_processes
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
        self._warnings = self._check_metrics(read_only=keep is None)

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
        return ocp.CheckpointManager(self._folder, options=options)

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
        snapshot, sums = _snapshot(tree)
        metrics = None if accuracy is None else {"accuracy": accuracy}
        with self._explained():
            manager.save(
                step,
                args=ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(snapshot)}),
                metrics=metrics,
                custom_metadata={"checksum": jax.device_get(sums).tolist()},
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

    def _check_metrics(self, *, read_only: bool) -> list[str]:
        """Moves checkpoints whose accuracy cannot be read to `damaged/`, because Orbax would fail on them.

        Returns:
          A message for each of them.

        Raises:
          UserError: there is such a checkpoint, and the folder is read-only.
        """
        lines = []
        with raise_on_all_processes():
            for path in sorted(self._folder.glob("[0-9]*/metrics/metrics")):
                try:
                    float(json.loads(path.read_text())["accuracy"])
                except (ValueError, KeyError, TypeError):
                    step = int(path.parent.parent.name)
                    lines.append(f"checkpoint {step} is damaged (its accuracy cannot be read)")
                    if read_only:
                        raise UserError(lines[-1]) from None
        with raise_on_all_processes():
            for line in lines:
                self._set_aside(int(line.split()[1]))
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


def _sums(tree: Any) -> jax.Array:
    """Returns two checksums over all bits of a tree, (2,) uint32. Changing any one word changes at least one.

    Each word is multiplied by an odd weight that depends on its position, so that swapped words are detected, too.
    """
    sums = jnp.zeros(2, jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        bits = jnp.uint16 if data.dtype.itemsize == 2 else jnp.uint32
        words = jax.lax.bitcast_convert_type(data, bits).astype(jnp.uint32).ravel()
        places = jnp.arange(words.size, dtype=jnp.uint32) + jnp.uint32(1000003 * number % 2**32)
        weights = [places * jnp.uint32(factor) | 1 for factor in (2654435761, 2246822519)]
        sums += jnp.stack([(words * weight).sum(dtype=jnp.uint32) for weight in weights])
    return sums


checksum = cheap_jit(_sums)


@cheap_jit
def _snapshot(tree: Any) -> tuple[Any, jax.Array]:
    return jax.tree.map(jnp.copy, tree), _sums(tree)
