"""SGD with momentum and coupled weight decay, and learning-rate schedules, built from optax."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import traverse_util
from optax.contrib import ReduceLROnPlateauState as PlateauState

from flaxcnn.config import OptimizerConfig, ScheduleConfig, to_steps
from flaxcnn.training import finetune


def make_schedule(config: ScheduleConfig, peak: float, *, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    With W warm-up steps, T steps in total, and t = (step - W) / (T - W), the learning rate is:

      warm-up (step < W): peak (w + (1 - w) step / W), with w = warmup_factor
      constant: peak
      step: peak * factor^floor(step / every)
      multi_step: peak * factor^(number of milestones reached)
      cosine: peak (f + (1 - f) (1 + cos(pi t)) / 2), with f = final_factor
      polynomial: peak (f + (1 - f) (1 - t)^power)
      plateau: peak; `make_optimizer` multiplies it by a factor that `observe` lowers

    The other names are fields of `config`. Durations in `every` and `milestones` count from the start of the run,
    not from the end of the warm-up.

    Args:
      config: name and parameters of the schedule.
      peak: peak learning rate.
      total_steps: number of steps in the whole run.
      steps_per_epoch: number of steps per epoch, to convert durations in epochs.
    """
    warmup = min(to_steps(config.warmup, steps_per_epoch), total_steps)
    decay_steps = max(total_steps - warmup, 1)
    schedule: optax.Schedule
    if config.name in ("constant", "plateau"):
        schedule = optax.constant_schedule(peak)
    elif config.name == "step":
        every = max(to_steps(config.every, steps_per_epoch), 1)

        def dropping(step: Any) -> jax.Array:
            return peak * config.factor ** ((step + warmup) // every).astype(jnp.float32)

        schedule = dropping

    elif config.name == "multi_step":
        milestones = [to_steps(duration, steps_per_epoch) for duration in config.milestones]

        def dropping_at_milestones(step: Any) -> Any:
            reached = sum((step + warmup >= milestone).astype(jnp.float32) for milestone in milestones)
            return peak * config.factor**reached

        schedule = dropping_at_milestones

    elif config.name == "cosine":
        schedule = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_factor)
    else:
        schedule = optax.polynomial_schedule(peak, peak * config.final_factor, config.power, decay_steps)
    if not warmup:
        return lambda step: schedule(jnp.asarray(step))
    ramp = optax.linear_schedule(peak * config.warmup_factor, peak, warmup)
    return lambda step: optax.join_schedules([ramp, schedule], [warmup])(jnp.asarray(step))


def make_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    plateau: ScheduleConfig | None = None,
    *,
    frozen: Sequence[str] = (),
    paused: Sequence[str] = (),
    depths: Mapping[str, int] | None = None,
) -> optax.GradientTransformation:
    """Returns SGD with momentum m and coupled weight decay d, at learning rate r:

        g = clip(gradient) + d * parameter          (d differs for kernels, biases and norms)
        velocity = m * velocity + g
        parameter -= r * velocity                   (Nesterov: r * (m * velocity + g))

    Layers may have factors of r: `config.multipliers` by pattern, `config.layer_decay` by depth.

    This is the SGD of torch, and of the papers since VGG. Sutskever et al., "On the importance of initialization
    and momentum in deep learning", 2013, multiply by the learning rate inside the velocity instead. The two differ
    when the learning rate changes.

    Args:
      config: momentum, weight decays and gradient clipping.
      schedule: learning rate as a function of the step.
      plateau: configuration of the schedule. If its name is "plateau", r is also multiplied by a factor in the
        optimizer state, which `observe` lowers.
      frozen: patterns of parameters that are never trained, and for which the optimizer keeps no state.
      paused: patterns of parameters that are not trained now, but later.
      depths: depth of each top-level layer, for `config.layer_decay`; see `finetune.layer_depths`.
    """
    steps = []
    if config.clip_norm is not None:
        steps.append(optax.clip_by_global_norm(config.clip_norm))
    decays = {
        "weight": config.weight_decay,
        "bias": config.bias_weight_decay,
        "norm": config.norm_weight_decay,
    }
    for decay in sorted({decay for decay in decays.values() if decay}):
        kinds = {kind for kind, other in decays.items() if other == decay}
        steps.append(optax.add_decayed_weights(decay, functools.partial(_is_of_kind, kinds)))
    steps.append(optax.sgd(schedule, config.momentum or None, config.nesterov))
    factors: dict[str, Any] = config.multipliers.to_dict()
    for pattern, factor in factors.items():
        steps = [finetune.scale_learning_rate(optax.chain(*steps), factor, pattern)]
    if config.layer_decay is not None and depths is not None:
        steps = [finetune.decay_learning_rate(optax.chain(*steps), config.layer_decay, depths)]
    if frozen:
        steps = [finetune.freeze(optax.chain(*steps), *frozen)]
    if plateau is not None and plateau.name == "plateau":
        steps.append(optax.GradientTransformation(_plateau(plateau).init, _scale_by_plateau))
    optimizer = optax.chain(*steps)
    return finetune.pause(optimizer, *paused) if paused else optimizer


def _is_of_kind(kinds: set[str], params: Any) -> Any:
    """Returns a mask that is True for the parameters whose kind ("weight", "bias" or "norm") is in `kinds`."""
    flat = traverse_util.flatten_dict(params)

    def kind(path: tuple[str, ...]) -> str:
        # Kernels have two or more axes; biases, and the scales and biases of norms, have one. Parameters that a
        # mask hides (`finetune.freeze`) are replaced by nodes without `ndim`.
        if getattr(flat[path], "ndim", 0) > 1:
            return "weight"
        return "norm" if (*path[:-1], "scale") in flat else "bias"

    return traverse_util.unflatten_dict({path: kind(path) in kinds for path in flat})


def _plateau(config: ScheduleConfig) -> optax.GradientTransformationExtraArgs:
    # Any increase of the accuracy counts: the tolerance is below the change by one example in float32.
    return optax.contrib.reduce_on_plateau(factor=config.factor, patience=config.patience, rtol=0.0, atol=1e-7)


def _scale_by_plateau(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    return jax.tree.map(lambda update: update * state.scale.astype(update.dtype), updates), state


def learning_rate(schedule: optax.Schedule, opt_state: optax.OptState) -> float:
    """Returns the learning rate of the last step that was not skipped, given the optimizer state after it."""

    def is_state(node: Any) -> bool:
        return isinstance(node, (optax.ScaleByScheduleState, PlateauState))

    rate = 1.0
    for state in filter(is_state, jax.tree.leaves(opt_state, is_leaf=is_state)):
        is_plateau = isinstance(state, PlateauState)
        rate *= float(np.asarray(state.scale if is_plateau else schedule(max(int(state.count) - 1, 0))))
    return rate


def observe(config: ScheduleConfig, opt_state: optax.OptState, accuracy: float) -> optax.OptState:
    """Updates the optimizer state after an evaluation, for the schedule "plateau"; others leave it unchanged.

    Args:
      config: configuration of the schedule.
      opt_state: optimizer state of `make_optimizer`.
      accuracy: test accuracy. After `config.patience` evaluations without an increase, the learning rate is
        multiplied by `config.factor`.
    """
    if config.name != "plateau":
        return opt_state
    *others, state = cast(tuple, opt_state)
    _, state = _plateau(config).update({}, jax.device_get(state), value=1.0 - accuracy)
    return (*others, state)
