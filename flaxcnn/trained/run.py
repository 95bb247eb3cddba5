"""Loading the network of a finished or stopped run."""

from pathlib import Path

import jax

from flaxcnn.config import from_dict
from flaxcnn.errors import UserError
from flaxcnn.parallel.compilation import keep_compiled_programs
from flaxcnn.paths import local_path
from flaxcnn.runs.checkpoint import Checkpoints
from flaxcnn.runs.workdir import has_checkpoints, read_run
from flaxcnn.training.experiment import Experiment, check_config, make_experiment
from flaxcnn.training.state import TrainState


def load_trained(
    workdir: str | Path, checkpoint: str = "latest", *, averaged: bool = False
) -> tuple[Experiment, TrainState]:
    """Returns the experiment of a run, and the train state of one of its checkpoints on the first device.

    Args:
      workdir: folder of the run.
      checkpoint: "latest", "best" (highest test accuracy), or the number of a step.
      averaged: whether the state contains the averaged parameters instead of the parameters.

    Raises:
      UserError: the folder holds no run, or the run has no such checkpoint or no averaged parameters.
    """
    keep_compiled_programs()
    workdir = local_path(workdir)
    experiment = _open_experiment(workdir)
    if averaged and not experiment.config.optimizer.ema_decay:
        raise UserError(f"{workdir} holds no averaged parameters; train with --config.optimizer.ema_decay=0.999")
    if not has_checkpoints(workdir):
        raise UserError(f"{workdir} holds no checkpoint yet; train with --workdir={workdir}")
    with Checkpoints(workdir) as checkpoints:
        named = {"latest": checkpoints.latest_step, "best": checkpoints.best_step}
        step = int(checkpoint) if checkpoint.isdecimal() else named.get(checkpoint)
        if step not in checkpoints.steps:
            steps = ", ".join(map(str, checkpoints.steps))
            raise UserError(f"{workdir} has no checkpoint {checkpoint!r}; write latest, best or one of {steps}")
        # Restoring needs only shapes and dtypes, so no parameters are initialized.
        like = jax.eval_shape(lambda: experiment.create_loop_state(experiment.optimizer()))
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = checkpoints.restore(step, jax.tree.map(lambda leaf: leaf.update(sharding=sharding), like)).state
        return experiment, state.averaged() if averaged else state


def _open_experiment(workdir: Path) -> Experiment:
    run = read_run(workdir)
    class_names, image_shape = run["data"]["class_names"], run["data"]["image_shape"]
    config = from_dict(run["config"])
    check_config(config)
    return make_experiment(config, tuple(class_names), tuple(image_shape))
