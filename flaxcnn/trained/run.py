"""Loading the network of a finished or stopped run."""

from pathlib import Path

import jax
import jax.numpy as jnp

from flaxcnn.config import from_dict
from flaxcnn.errors import UserError
from flaxcnn.parallel.compilation import keep_compiled_programs
from flaxcnn.paths import local_path
from flaxcnn.runs.variables import read_variables
from flaxcnn.runs.workdir import read_run
from flaxcnn.training.experiment import Experiment, check_config, make_experiment
from flaxcnn.training.state import TrainState, inference_state


def load_trained(
    workdir: str | Path, checkpoint: str = "latest", *, averaged: bool = False, count: int = 1
) -> tuple[Experiment, TrainState]:
    """Returns the experiment of a run, and the variables of its checkpoints on the first device.

    Args:
      workdir: folder of the run.
      checkpoint: "latest", "best" (highest test accuracy), or the number of a step.
      averaged: whether to take the moving averages of the variables.
      count: number of checkpoints whose mean is taken, see `read_variables`.

    Returns:
      The experiment, and a train state without the state of an optimizer.

    Raises:
      UserError: the folder holds no run, or see `read_variables`.
    """
    keep_compiled_programs()
    workdir = local_path(workdir)
    experiment = _open_experiment(workdir)
    variables, step = read_variables(workdir, checkpoint, averaged=averaged, count=count)
    if jax.tree.map(jnp.shape, variables) != jax.tree.map(jnp.shape, experiment.variable_shapes()):
        raise UserError(f"checkpoint {step} of {workdir} does not fit the network that its run.json describes")
    return experiment, inference_state(variables, step)


def _open_experiment(workdir: Path) -> Experiment:
    run = read_run(workdir)
    class_names, image_shape = run["data"]["class_names"], run["data"]["image_shape"]
    config = from_dict(run["config"])
    check_config(config)
    return make_experiment(config, tuple(class_names), tuple(image_shape))
