"""Reading the parameters and running statistics of a run from its checkpoints."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flaxcnn.errors import UserError
from flaxcnn.runs.checkpoint import Checkpoints
from flaxcnn.runs.workdir import has_checkpoints


def read_variables(
    workdir: Path, checkpoint: str = "latest", *, averaged: bool = False, count: int = 1
) -> tuple[dict[str, Any], int]:
    """Returns the variables of a run on the first device. The state of the optimizer is not read.

    Args:
      workdir: folder of the run.
      checkpoint: "latest", "best" (highest test accuracy), or the number of a step.
      averaged: whether to return the moving averages of the variables, which a run keeps if `optimizer.ema_decay`
        is set.
      count: number of checkpoints whose mean is returned: this checkpoint and those before it.

    Returns:
      (variables, step): {"params": ..., "batch_stats": ...}, and the step of the checkpoint.

    Raises:
      UserError: there is no such checkpoint, there are fewer than `count`, the run keeps no averages, or a
        checkpoint is damaged.
    """
    if not has_checkpoints(workdir):
        raise UserError(f"{workdir} holds no checkpoint yet; train with --workdir={workdir}")
    with Checkpoints(workdir) as checkpoints:
        named = {"latest": checkpoints.latest_step, "best": checkpoints.best_step}
        step = int(checkpoint) if checkpoint.isdecimal() else named.get(checkpoint)
        if step not in checkpoints.steps:
            steps = ", ".join(map(str, checkpoints.steps))
            raise UserError(f"{workdir} has no checkpoint {checkpoint!r}; write latest, best or one of {steps}")
        steps = [each for each in checkpoints.steps if each <= step][-count:]
        if len(steps) < count:
            raise UserError(
                f"{workdir} has {len(steps)} checkpoints up to step {step}, and {count} are to be averaged; train "
                f"with --config.checkpoint.keep={count}"
            )
        trees = [checkpoints.restore_variables(each, averaged=averaged) for each in steps]
    if not trees[0]:
        raise UserError(f"{workdir} holds no averaged parameters; train with --config.optimizer.ema_decay=0.999")
    return (trees[0] if count == 1 else jax.tree.map(_mean, *trees)), step


def _mean(*arrays: jax.Array) -> jax.Array:
    return sum(arrays[1:], start=arrays[0].astype(jnp.promote_types(arrays[0].dtype, jnp.float32))) / len(arrays)
