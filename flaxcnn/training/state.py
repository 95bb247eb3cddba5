"""Everything that a run carries from step to step."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
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
