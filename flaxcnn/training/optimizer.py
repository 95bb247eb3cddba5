"""Stochastic gradient descent as the classical recipes have it, and its schedules, from optax's parts."""

import jax
import jax.numpy as jnp
import optax

from flaxcnn.config import OptimizerConfig, ScheduleConfig, to_steps


def make_schedule(config: ScheduleConfig, peak: float, *, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    With W steps of warm-up, T steps in all, and t = (step - W) / (T - W):

      warm-up (step < W): peak (w + (1 - w) step / W), with w = warmup_factor
      constant: peak
      multi_step: peak * factor^(milestones that step has reached)
      cosine: peak (f + (1 - f) (1 + cos(pi t)) / 2), with f = final_factor
      polynomial: peak (f + (1 - f) (1 - t)^power)

    Milestones count from the start of the run, not from the end of the warm-up.
    """
    warmup = min(to_steps(config.warmup, steps_per_epoch), total_steps)
    decay_steps = max(total_steps - warmup, 1)
    if config.name == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.name == "multi_step":
        milestones = [to_steps(duration, steps_per_epoch) for duration in config.milestones]

        def schedule(step):
            reached = sum((step + warmup >= milestone).astype(jnp.float32) for milestone in milestones)
            return peak * config.factor**reached

    elif config.name == "cosine":
        schedule = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_factor)
    else:
        schedule = optax.polynomial_schedule(peak, peak * config.final_factor, config.power, decay_steps)
    if not warmup:
        return lambda step: schedule(jnp.asarray(step))
    rise = optax.linear_schedule(peak * config.warmup_factor, peak, warmup)
    return lambda step: optax.join_schedules([rise, schedule], [warmup])(jnp.asarray(step))


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns SGD with momentum m and coupled weight decay d, at learning rate r:

        g = clip(gradient) + d * parameter          (d for weights only, unless weight_decay_on is "all")
        velocity = m * velocity + g
        parameter -= r * velocity                   (Nesterov: r * (m * velocity + g))

    This is torch's SGD and that of the papers from VGG on. Sutskever et al., "On the importance of initialization
    and momentum in deep learning", 2013, has the learning rate inside the velocity instead; the two differ when
    the rate changes.
    """

    def is_weight(params):
        # Kernels have two dimensions or more; biases and the scales and offsets of norms have one.
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    steps = []
    if config.clip_norm is not None:
        steps.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        mask = is_weight if config.weight_decay_on == "weights" else None
        steps.append(optax.add_decayed_weights(config.weight_decay, mask))
    steps.append(optax.sgd(schedule, config.momentum or None, config.nesterov))
    return optax.chain(*steps)
