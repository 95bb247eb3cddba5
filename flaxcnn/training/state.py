"""Everything that a run carries from step to step."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization, struct

Array = jax.Array


class LossScale(struct.PyTreeNode):
    """The factor on the loss in float16, whose gradients would vanish below 6e-8 and overflow above 65,504.

    Micikevicius et al., "Mixed Precision Training", 2018, section 3.2; doubled and halved as there.

    Attributes:
      scale: () float32, the factor.
      good_steps: () int32, steps in a row with finite gradients since the factor changed.
    """

    scale: Array
    good_steps: Array

    @classmethod
    def start(cls) -> "LossScale":
        """Returns the scale of the first step: high, because each overflow costs one step only."""
        return cls(scale=jnp.asarray(2.0**15, jnp.float32), good_steps=jnp.zeros((), jnp.int32))

    def adjust(self, finite: Array, *, growth_interval: int = 2000) -> "LossScale":
        """Returns the next scale: half of it after a step that was not finite, twice after so many that were.

        It stays between 1 and 2**24.
        """
        good_steps = jnp.where(finite, self.good_steps + 1, 0)
        grows = good_steps >= growth_interval
        larger = jnp.where(grows, jnp.minimum(self.scale * 2, 2.0**24), self.scale)
        scale = jnp.where(finite, larger, jnp.maximum(self.scale / 2, 1))
        return LossScale(scale=scale, good_steps=jnp.where(grows, 0, good_steps))


class TrainState(struct.PyTreeNode):
    """The state of a run, a pytree of arrays; the model and the optimizer are arguments of the step instead.

    Attributes:
      step: () int32, steps taken, those that were skipped included.
      params: trainable parameters.
      batch_stats: running statistics of BatchNorm; an empty dict without it.
      opt_state: of optax.
      ema: {"params", "batch_stats"}, their exponential moving averages, or None.
      loss_scale: a `LossScale` in float16 training, or None.
      rng: key from which each step derives its own.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    loss_scale: LossScale | None
    rng: Array

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def averaged(self) -> "TrainState":
        """Returns the state with the averaged parameters and statistics in the place of the live ones."""
        return self.replace(**self.ema)


def _to_state_dict(state: TrainState) -> dict[str, Any]:
    def data(leaf):
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf

    return serialization.to_state_dict(vars(jax.tree.map(data, state)))


def _from_state_dict(target: TrainState, state_dict: dict[str, Any]) -> TrainState:
    def key(old, new):
        return jax.random.wrap_key_data(new, impl=old.dtype) if _is_key(old) else new

    restored = serialization.from_state_dict(vars(target), state_dict)
    return jax.tree.map(key, target, TrainState(**restored))


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


# `flax.serialization` holds arrays of numbers alone, so keys go through it as their numbers.
serialization.register_serialization_state(TrainState, _to_state_dict, _from_state_dict, override=True)


class Carry(struct.PyTreeNode):
    """What the loop hands from step to step, and a checkpoint holds.

    Attributes:
      state: of the training.
      interval: sums of the metrics since the last training record.
      epoch: sums of the metrics since the last end of an epoch.
      skipped_in_a_row: () int32, steps skipped since the last one that was not.
    """

    state: TrainState
    interval: dict[str, Array]
    epoch: dict[str, Array]
    skipped_in_a_row: Array

    @classmethod
    def start(cls, state: TrainState, loss_dtype: Any = jnp.float32) -> "Carry":
        """Returns the carry of a state of which nothing has been summed yet."""

        def nothing():
            counts = {name: jnp.zeros((), jnp.int32) for name in ("correct", "count", "skipped")}
            return {"loss": jnp.zeros((), loss_dtype)} | counts

        return cls(state, interval=nothing(), epoch=nothing(), skipped_in_a_row=jnp.zeros((), jnp.int32))


def zeros_like(sums: dict[str, Array]) -> dict[str, np.ndarray]:
    """Returns the sums of no training metrics, on the host, with the dtypes of others."""
    return {name: np.zeros((), leaf.dtype) for name, leaf in sums.items()}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    input_shape: tuple[int, int, int],
    ema: bool = False,
    loss_scale: bool = False,
) -> TrainState:
    """Returns the state before the first step, a pure function of the seed.

    Args:
      model: to train.
      optimizer: whose state it holds.
      seed: of the parameters and of all later randomness.
      input_shape: (height, width, channels) that the network will be fed.
      ema: whether averages are kept.
      loss_scale: whether the loss is scaled, as float16 needs.
    """

    @jax.jit
    def create():
        init_key, rng = jax.random.split(jax.random.key(seed))
        variables = model.init(init_key, jnp.zeros((1, *input_shape)), train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema={"params": params, "batch_stats": batch_stats} if ema else None,
            loss_scale=LossScale.start() if loss_scale else None,
            rng=rng,
        )

    return create()
