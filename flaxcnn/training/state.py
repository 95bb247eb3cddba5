"""The training state: `TrainState`, which a step updates, and `LoopState`, which a checkpoint stores."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization, struct

Array = jax.Array


class LossScale(struct.PyTreeNode):
    """Dynamic loss scale for float16, whose gradients underflow below 6e-8 and overflow above 65,504.

    Micikevicius et al., "Mixed Precision Training", 2018, section 3.2.

    Attributes:
      scale: () float32, factor by which the loss is multiplied.
      good_steps: () int32, number of steps with finite gradients since the scale last changed.
    """

    scale: Array
    good_steps: Array

    @classmethod
    def start(cls) -> "LossScale":
        """Returns the initial scale, 2**15. It is high, because an overflow costs only one step."""
        return cls(scale=jnp.asarray(2.0**15, jnp.float32), good_steps=jnp.zeros((), jnp.int32))

    def adjust(self, finite: Array, *, growth_interval: int = 2000) -> "LossScale":
        """Returns the loss scale for the next step, between 1 and 2**24.

        Args:
          finite: () bool, whether the loss, gradients and statistics of the step were finite. If not, the scale is
            halved.
          growth_interval: number of consecutive finite steps after which the scale is doubled.
        """
        good_steps = jnp.where(finite, self.good_steps + 1, 0)
        grows = good_steps >= growth_interval
        larger = jnp.where(grows, jnp.minimum(self.scale * 2, 2.0**24), self.scale)
        scale = jnp.where(finite, larger, jnp.maximum(self.scale / 2, 1))
        return LossScale(scale=scale, good_steps=jnp.where(grows, 0, good_steps))


class TrainState(struct.PyTreeNode):
    """The arrays that a training step updates, as a pytree; it does not contain the model and the optimizer.

    Attributes:
      step: () int32, number of steps taken, including skipped steps.
      params: trainable parameters.
      batch_stats: running statistics of BatchNorm; an empty dict for networks without BatchNorm.
      opt_state: state of the optax optimizer.
      ema: exponential moving averages of parameters and running statistics, {"params": ..., "batch_stats": ...}, or
        None.
      loss_scale: `LossScale` for float16, otherwise None.
      rng: PRNG key from which the keys of all steps are derived.
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
        """Variables for `model.apply`: {"params": ..., "batch_stats": ...}."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def averaged(self) -> "TrainState":
        """Returns the state with parameters and running statistics replaced by their moving averages."""
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


# `flax.serialization` supports only arrays of numbers, so PRNG keys are converted to their data.
serialization.register_serialization_state(TrainState, _to_state_dict, _from_state_dict, override=True)


class LoopState(struct.PyTreeNode):
    """Train state and sums of metrics, which the loop passes from step to step and a checkpoint stores.

    Attributes:
      state: the train state.
      interval: sums of the metrics since training metrics were last logged.
      epoch: sums of the metrics since the start of the epoch.
      skipped_in_a_row: () int32, number of consecutive skipped steps up to the current step.
    """

    state: TrainState
    interval: dict[str, Array]
    epoch: dict[str, Array]
    skipped_in_a_row: Array

    @classmethod
    def start(cls, state: TrainState, loss_dtype: Any = jnp.float32) -> "LoopState":
        """Returns the loop state with a given train state and all sums 0."""

        def zeros():
            counts = {name: jnp.zeros((), jnp.int32) for name in ("correct", "count", "skipped")}
            return {"loss": jnp.zeros((), loss_dtype)} | counts

        return cls(state, interval=zeros(), epoch=zeros(), skipped_in_a_row=jnp.zeros((), jnp.int32))

    def advance(self, state: TrainState, metrics: dict[str, Array]) -> "LoopState":
        """Returns the loop state after a step, given the new train state and the metrics of the step."""
        return LoopState(
            state,
            interval=jax.tree.map(jnp.add, self.interval, metrics),
            epoch=jax.tree.map(jnp.add, self.epoch, metrics),
            skipped_in_a_row=(self.skipped_in_a_row + metrics["skipped"]) * metrics["skipped"],
        )


def zeros_like(sums: dict[str, Array]) -> dict[str, np.ndarray]:
    """Returns NumPy scalars 0 with the names and dtypes of the given sums."""
    return {name: np.zeros((), leaf.dtype) for name, leaf in sums.items()}


def shapes_of_variables(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the shapes and dtypes of a network's variables: {"params": ..., "batch_stats": ...}.

    Args:
      model: the network.
      input_shape: (height, width, channels) of the model input.
    """
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    variables: Any = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def inference_state(variables: Mapping[str, Any], step: int = 0) -> TrainState:
    """Returns a train state with variables, and without the state of an optimizer.

    Args:
      variables: {"params": ..., "batch_stats": ...}.
      step: number of steps after which they were saved.
    """
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=(),
        ema=None,
        loss_scale=None,
        rng=jax.random.key(0),
    )


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    input_shape: tuple[int, int, int],
    ema: bool = False,
    loss_scale: bool = False,
) -> TrainState:
    """Returns the train state before the first step. It depends only on the arguments.

    Args:
      model: the network.
      optimizer: optax optimizer.
      seed: seed of the initial parameters and of dropout, augmentation and mixing in later steps.
      input_shape: (height, width, channels) of the model input.
      ema: whether to keep moving averages of parameters and running statistics.
      loss_scale: whether to scale the loss dynamically, as float16 requires.
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
