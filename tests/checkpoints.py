"""The train state in a checkpoint, with that of the optimizer, which `load_trained` does not read."""

import jax
import numpy as np

from flaxcnn.runs.checkpoint import Checkpoints
from flaxcnn.trained.run import load_trained


def saved_state(workdir):
    """Returns the newest train state of a run, on the first device."""
    experiment, _ = load_trained(workdir)
    like = jax.eval_shape(lambda: experiment.create_loop_state(experiment.optimizer()))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(workdir, keep=1000) as checkpoints:
        like = jax.tree.map(lambda leaf: leaf.update(sharding=sharding), like)
        return checkpoints.restore(checkpoints.latest_step, like).state


def saved_arrays(workdir):
    """Returns all arrays of the newest train state of a run."""
    state = saved_state(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.replace(rng=jax.random.key_data(state.rng)))]
