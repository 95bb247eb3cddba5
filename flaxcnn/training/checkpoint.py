"""Checkpoints through orbax: atomic, written in the background, the newest few and the best kept."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from flaxcnn.errors import UserError
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
        self._manager = ocp.CheckpointManager((workdir / CHECKPOINTS).resolve(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, carry: Carry, accuracy: float | None) -> None:
        """Starts to write a checkpoint; the caller may donate its arrays at once.

        Args:
          step: names the checkpoint.
          carry: what `restore` gives back.
          accuracy: on the test split, if it was evaluated at this step; the highest marks the best checkpoint.
        """
        # Orbax may still read the arrays while the next step overwrites them, so it gets arrays of its own.
        snapshot = jax.tree.map(jnp.copy, carry)
        metrics = None if accuracy is None else {"accuracy": accuracy}
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
        """Returns what was saved at a step, with the structure, shapes and dtypes of `like`.

        Raises:
          UserError: it holds something else.
        """
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"checkpoint {step} does not fit this network and optimizer: {reason}") from error


def _is_news(record: Any) -> bool:
    known = ("did not provide metrics", "read_only=True", "directory is read only", "Metadata file does not exist")
    return not any(message in record.getMessage() for message in known)
