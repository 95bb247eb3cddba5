"""Everything that a run carries from step to step."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array


@flax.struct.dataclass
class TrainState:
    """The state of a run, a pytree of arrays; the model and the optimizer are arguments of the step instead.

    Attributes:
      step: () int32, steps taken.
      params: trainable parameters.
      batch_stats: running statistics of BatchNorm; an empty dict without it.
      opt_state: of optax.
      ema: averaged parameters and statistics, or None.
      loss_scale: of float16 training, or None.
      rng: key from which each step derives its own.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    loss_scale: Any
    rng: Array

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class Carry:
    """What the loop hands from step to step, and a checkpoint holds.

    Attributes:
      state: of the training.
      interval: sums of the metrics since the last training record.
      epoch: sums of the metrics since the last end of an epoch.
    """

    state: TrainState
    interval: dict[str, Array]
    epoch: dict[str, Array]

    @classmethod
    def start(cls, state: TrainState) -> "Carry":
        """Returns the carry of a state of which nothing has been summed yet."""
        return jax.device_put(cls(state, zero_metrics(), zero_metrics()), jax.devices()[0])


def zero_metrics() -> dict[str, Array]:
    """Returns the sums of no training metrics, on the device."""
    zeros = {"loss": np.zeros((), float), "correct": np.zeros((), np.int32), "count": np.zeros((), np.int32)}
    return jax.device_put(zeros, jax.devices()[0])


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, *, seed: int, input_shape: tuple[int, int, int]
) -> TrainState:
    """Returns the state before the first step, a pure function of the seed.

    Args:
      model: to train.
      optimizer: whose state it holds.
      seed: of the parameters and of all later randomness.
      input_shape: (height, width, channels) that the network will be fed.
    """

    @jax.jit
    def create():
        init_key, rng = jax.random.split(jax.random.key(seed))
        variables = model.init(init_key, jnp.zeros((1, *input_shape)), train=False)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            ema=None,
            loss_scale=None,
            rng=rng,
        )

    return create()
