"""Checkpoints through orbax: atomic, written in the background, the newest few and the best kept."""

import contextlib
import functools
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from flaxcnn.errors import UserError, first_line
from flaxcnn.training.compilation import jit_in_haste
from flaxcnn.training.distributed import is_primary, together
from flaxcnn.training.state import Carry
from flaxcnn.training.workdir import CHECKPOINTS, has_checkpoints

_ITEM = "carry"
_CONTINUE = "those before it are whole, and the same command continues from the newest"


class Checkpoints:
    """The checkpoints of a work directory, by step; a context that ends when everything is written."""

    def __init__(self, workdir: Path, *, keep: int | None = None):
        """Opens them to write, keeping the `keep` newest and the best, or only to read if `keep` is None."""
        self._keep = keep
        self._folder = (workdir / CHECKPOINTS).resolve()
        self._damaged = self._folder.with_name("damaged")
        self._warnings = self._check_metrics(read_only=keep is None)

    @functools.cached_property
    def _manager(self) -> Any:
        """Of orbax, which takes half a second to import: more than a new run needs to come to its first step."""
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        def accuracy(metrics: dict[str, float]) -> float:
            return metrics["accuracy"]

        logging.get_absl_logger().addFilter(_is_news)
        kept = [
            checkpoint_managers.LatestN(self._keep or 1),
            checkpoint_managers.BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=accuracy,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=self._keep is not None,  # of runs that were killed while they saved
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
        """Waits until everything is on disk.

        Raises:
          UserError: it could not be written.
        """
        if self._is_open:
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
        import orbax.checkpoint as ocp

        self.finish()
        manager = self._manager
        with together():
            self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(carry)))
        # Orbax may still read the arrays while the next step overwrites them, so it gets arrays of its own.
        snapshot, sums = _snapshot(carry)
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
        import orbax.checkpoint as ocp

        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        arguments = ocp.args.Composite(**{_ITEM: ocp.args.StandardRestore(abstract)})

        def read() -> tuple[Carry, list[int] | None]:
            saved = (self._manager.metadata(step).custom_metadata or {}).get("checksum")
            return self._manager.restore(step, args=arguments)[_ITEM], saved

        found, failure = _quietly(read)
        if failure:
            raise UserError(f"checkpoint {step} is damaged, or does not fit this network and optimizer ({failure})")
        carry, saved = found
        dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (carry, like)]
        if saved is None or dtypes[0] != dtypes[1] or jax.device_get(checksum(carry)).tolist() != saved:
            raise UserError(f"checkpoint {step} is damaged (it is not what was saved)")
        return carry

    def restore_newest(self, like: Carry, warn: Callable[[str], None]) -> Carry | None:
        """Returns the newest checkpoint that can be read, or None if there is none at all.

        Newer ones, which cannot, are moved out of the way, into `damaged/` of the work directory, with a warning.

        Raises:
          UserError: there are checkpoints, and none can be read; all stay where they are.
        """
        if not (self._warnings or has_checkpoints(self._folder.parent)):
            return None
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
            first = next(iter(failures.values()))
            raise UserError(f"no checkpoint in {self._folder} can be read: {first}; choose another --workdir")
        for line in [*self._warnings, *map(str, failures.values())]:
            warn(f"warning: {line}; taking the one before it, and keeping this in {self._damaged.name}/")
        if failures:
            with together():
                for step in failures:
                    self._set_aside(step)
            self._manager.reload()
        return carry

    def _check_metrics(self, *, read_only: bool) -> list[str]:
        """Sets checkpoints aside whose accuracy cannot be read, at which orbax would fail; returns what to say.

        Raises:
          UserError: there is one, and the folder is only read.
        """
        lines = []
        with together():
            for path in sorted(self._folder.glob("[0-9]*/metrics/metrics")):
                try:
                    float(json.loads(path.read_text())["accuracy"])
                except (ValueError, KeyError, TypeError):
                    step = int(path.parent.parent.name)
                    lines.append(f"checkpoint {step} is damaged (its accuracy cannot be read)")
                    if read_only:
                        raise UserError(lines[-1]) from None
        with together():
            for line in lines:
                self._set_aside(int(line.split()[1]))
        return lines

    def _set_aside(self, step: int) -> None:
        if is_primary():
            self._damaged.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(self._damaged / f"{step}-{time.strftime('%Y%m%dT%H%M%S')}")

    def _check_space(self, needed: int) -> None:
        """Raises `UserError` if the disk is too full: asked beforehand, because threads below orbax fail loudly."""
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
        except Exception as error:  # orbax and what lies below it raise all kinds
            reason = "no space left on the device" if "No space left" in str(error) else first_line(error, 100)
            raise UserError(f"a checkpoint could not be written: {reason}; {_CONTINUE}") from error


def _sums(tree: Any) -> jax.Array:
    """Returns two sums over all bits of a tree, (2,) uint32, of which one at least changes with any one word.

    Each word counts with an odd weight by its place, so that words that change places are seen, too.
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


checksum = jit_in_haste(_sums)


@jit_in_haste
def _snapshot(tree: Any) -> tuple[Any, jax.Array]:
    return jax.tree.map(jnp.copy, tree), _sums(tree)


def _quietly(function: Callable[[], Any]) -> tuple[Any, str]:
    """Returns the result of a function and no reason, or the reason why it failed and then nothing on the screen.

    Of one truncated file, threads below orbax print thousands of lines to standard error.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        result, failure = None, ""
        try:
            result = function()
        except PermissionError:
            raise
        except Exception as error:  # orbax and what lies below it raise all kinds
            if "RESOURCE_EXHAUSTED" in str(error):  # of the device, and no fault of the file
                raise
            failure = first_line(error, 100)
        finally:
            if failure:
                gc.collect()  # tasks that failed say so when they are collected
                time.sleep(0.5)  # and reads still under way when they end
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        held.seek(0)
        if not failure:
            sys.stderr.write(held.read().decode(errors="replace"))
    return result, failure


def _is_news(record: Any) -> bool:
    known = (
        "did not provide metrics",
        "read_only=True",
        "directory is read only",
        "Metadata file does not exist",
        "Reached preemption sync point",
        "could not be restored. Please provide",
        "Failed to json parse Metadata file",
        "raised an exception",  # which then reaches `Checkpoints` itself
        "Handler Commit operations",
        "Save Finalize thread",
    )
    return not any(message in record.getMessage() for message in known)
