"""One step of training and one of evaluation, each written once, for one device's share of a batch."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from flaxcnn.errors import UserError, first_line
from flaxcnn.inference.prediction import Views, average_views
from flaxcnn.training.shares import AxisName, apply_to_share, as_own, merge_statistics
from flaxcnn.training.state import TrainState

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]
Preprocess = Callable[..., Array]
Mix = Callable[[Array, Array, Array, Array], tuple[Array, Array, Array]]

# Above this many classes the confusion matrix is left out of the metrics: it would weigh more than the network.
CONFUSION_CLASSES = 1000
# Szegedy et al., "Going Deeper with Convolutions", 2014, section 5.
AUXILIARY_WEIGHT = 0.3


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    *,
    mix: Mix | None = None,
    label_smoothing: float = 0.0,
    micro_batches: int = 1,
    ema_decay: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `train_step(state, batch, axis_name=None) -> (state, metrics)`, a pure function.

    The loss is softmax cross-entropy, averaged over the examples whose mask is 1, plus 0.3 of that of each
    auxiliary head, which a model sows into `aux_logits`; the metrics are of the main head alone. With `axis_name`
    the batch is one device's share, and gradients, statistics and metrics are those of the whole. Dropout depends
    on the seed, the step and the example's place in the whole batch, not on how it is split.

    A batch may have a fourth array, `visit` (B, 2) int32: the epoch and the number of each example, on which, with
    the seed, its augmentation depends. Without it they are the step and the place in the whole batch.

    If the loss, a gradient or a running statistic is not finite, parameters, statistics, optimizer and averages
    stay as they are, the loss scale is halved, and the step counts as one of `skipped` and as no example.

    Args:
      model: network, called with `train=True`.
      optimizer: of optax. One that asks for more than gradients gets, of the whole batch, `value` (the mean loss)
        and `grad`; `value_fn(params)` and `grad_fn(params, number)`, which compute them at other parameters; and a
        `key` of the step.
      preprocess: `preprocess(images, key=key, visits=visits)` from uint8 (B, H, W, C) to the network's input,
        augmented as the visits (B, 2) say, by the key of the run.
      mix: `mix(key, images, targets, mask)`, which returns images and targets mixed over the batch, and the mask of
        those that are made of real ones alone; targets (B, classes) sum to one. Parts of a batch get the same key,
        so that they can be mixed alike.
      label_smoothing: the share e of each target spread over all classes: (1 - e) one_hot + e / classes.
      micro_batches: equal parts into which a device's share is cut, taken one after another; their gradients are
        those of the whole. BatchNorm normalises over each part (with `bn_axis_name` over that part of all devices),
        and its running statistics move once, by those of the whole batch, as between devices.
      ema_decay: share of the averages kept a step, which starts at 0.1 and rises: min(decay, (1 + t) / (10 + t)) at
        step t from 0, as in TensorFlow's ExponentialMovingAverage. It matters only if the state keeps averages.

    Raises:
      UserError: while the step is traced: the optimizer asks for something else, such as gradients by example.
    """

    def train_step(
        state: TrainState, batch: Batch, axis_name: AxisName | None = None
    ) -> tuple[TrainState, Metrics]:
        _check_batch(batch)
        size = len(batch["label"])
        if size % micro_batches:
            raise ValueError(f"a share of {size} examples cannot be cut into {micro_batches} micro-batches")
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
        # The zeros bring along how the batch is sharded.
        positions = first + jnp.arange(size, dtype=jnp.int32) + jnp.zeros_like(batch["label"])
        total = size if axis_name is None else size * jax.lax.psum(1, axis_name)
        visits = jnp.stack([jnp.full_like(positions, state.step), positions], axis=1)
        augment_key, rng = jax.random.split(state.rng)
        step_key = jax.random.fold_in(rng, state.step)
        dropout_key, mix_key = jax.random.split(step_key)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
        momenta = {}

        def loss(params, share):
            images = preprocess(share["image"], key=augment_key, visits=share["visit"])
            targets, mask = share["label"], share["mask"]
            if mix is not None:
                targets = jax.nn.one_hot(targets, model.num_classes, dtype=images.dtype)
                images, targets, mask = mix(mix_key, images, targets, mask)
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated, found = apply_to_share(
                model, variables, images, positions=share["position"], dropout_key=dropout_key
            )
            momenta.update(found)
            losses = cross_entropy(logits, targets, label_smoothing)
            sums = losses
            for auxiliary in jax.tree.leaves(updated.get("aux_logits", {})):
                sums = sums + AUXILIARY_WEIGHT * cross_entropy(auxiliary, targets, label_smoothing)
            # Divided here, and not after the sum over devices, so that float16 holds the gradients.
            mean = (sums * mask).sum() / total
            labels = targets if targets.ndim == 1 else targets.argmax(axis=-1)
            return mean * scale, (_metrics(logits, losses, labels, mask), updated.get("batch_stats", {}))

        def differentiate(params):
            """Returns sums over the batch: loss, gradient, the factor that makes them those of the mean, metrics.

            Last come the running statistics that each part arrived at.
            """
            # Under `jax.shard_map` JAX itself sums the gradient with respect to what is replicated. Each device's
            # own is summed here, once, as under `pmap`.
            own = as_own(params, axis_name)

            def of_part(part):
                (value, (metrics, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(own, part)
                return (value, gradients, metrics), batch_stats

            (value, gradients, metrics), batch_stats = _over_micro_batches(
                of_part, {"visit": visits, **batch, "position": positions}, micro_batches
            )
            gradients, metrics = _sum_over(axis_name, (gradients, metrics))
            # Of a batch without a real example nothing is learned, which is no fault of the gradients.
            correction = total / (jnp.maximum(metrics["count"], 1) * scale)
            return _sum_over(axis_name, value), gradients, correction, metrics, batch_stats

        value, gradients, correction, metrics, batch_stats = differentiate(state.params)

        def corrected() -> Any:
            return _scaled(gradients, correction)

        def extra_arguments() -> dict[str, Any]:
            """Returns what optimizers may ask for beyond the gradients and the parameters."""

            def value_and_gradient(params):
                value, gradients, correction, *_ = differentiate(params)
                return value * correction, _scaled(gradients, correction)

            # With a derivative of its own: without `check_vma` JAX's would be that of one device's part.
            mean_loss = jax.custom_vjp(lambda params: value_and_gradient(params)[0])
            mean_loss.defvjp(value_and_gradient, lambda gradient, by: (_scaled(gradient, jnp.asarray(by)),))

            def value_fn(params, key=None, grad_fn=None):  # line searches want all that is left over to go in here
                del key, grad_fn
                return mean_loss(params)

            return {
                "value": value * correction,
                "grad": corrected(),
                "value_fn": value_fn,
                "grad_fn": lambda params, _: value_and_gradient(params)[1],
                "key": jax.random.fold_in(step_key, 2),  # the third child of the key, of which `split` made two
            }

        batch_stats = merge_statistics(batch_stats, momenta, axis_name)
        finite = _all_finite((corrected(), batch_stats, metrics["loss"]))
        old = {name: getattr(state, name) for name in ("params", "batch_stats", "opt_state", "ema")}

        def advanced() -> dict[str, Any]:
            updates, opt_state = _update(optimizer, corrected(), state, extra_arguments())
            params = optax.apply_updates(state.params, updates)
            ema = None
            if state.ema is not None:
                decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
                live = {"params": params, "batch_stats": batch_stats}
                ema = jax.tree.map(
                    lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old), state.ema, live
                )
            new = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state, "ema": ema}
            # Statistics of float64 maps are in float64, and kept in the precision that they began in.
            return jax.tree.map(lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), new, old)

        kept = _where(finite, advanced, lambda: old)
        loss_scale = None if state.loss_scale is None else state.loss_scale.adjust(finite)
        metrics = {name: jnp.where(finite, value, 0) for name, value in metrics.items()}
        metrics["skipped"] = 1 - finite.astype(jnp.int32)
        return state.replace(step=state.step + 1, loss_scale=loss_scale, **kept), metrics

    return train_step


def _scaled(tree: Any, factor: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def _update(
    optimizer: optax.GradientTransformation, gradients: Any, state: TrainState, extra: dict[str, Any]
) -> tuple[Any, optax.OptState]:
    """Calls an optimizer with those of the extra arguments that it takes."""
    parameters = inspect.signature(optimizer.update).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    extra = {name: value for name, value in extra.items() if takes_all or name in parameters}
    try:
        return optimizer.update(gradients, state.opt_state, state.params, **extra)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the optimizer does not go with this step, which gives it {', '.join(extra) or 'gradients'}: "
            f"{first_line(error)}"
        ) from error


def _all_finite(tree: Any) -> Array:
    flags = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
    # Without the barrier a compiler may write their conjunction out into the update of every parameter, which is
    # quadratic work for it: minutes for a DenseNet.
    return jax.lax.optimization_barrier(flags).all()


def _where(condition: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Returns the one or the other.

    A branch lets a CPU write parameters and momentum in place; to select, it would copy both first. An accelerator
    would ask the host which branch to take.
    """

    def select(condition: Array) -> Any:
        return jax.tree.map(functools.partial(jnp.where, condition), yes(), no())

    return jax.lax.platform_dependent(condition, cpu=lambda c: jax.lax.cond(c, yes, no), default=select)


def make_eval_step(model: nn.Module, views: Views) -> Callable[..., Metrics]:
    """Returns `eval_step(state, batch, axis_name=None) -> metrics`, a pure function.

    The metrics are sums and counts over the examples whose mask is 1: those of training, `correct_top5`, and
    `confusion` (classes, classes) int32, rows by label and columns by prediction, up to 1,000 classes.

    Args:
      model: network, called with `train=False`.
      views: `views(images)` from uint8 (B, H, W, C) to the network's inputs, see `average_views`.
    """

    def eval_step(state: TrainState, batch: Batch, axis_name: AxisName | None = None) -> Metrics:
        _check_batch(batch)
        logits = average_views(model, state.variables, views(batch["image"]))
        losses = cross_entropy(logits, batch["label"])
        metrics = _metrics(logits, losses, batch["label"], batch["mask"])
        counted = batch["mask"].astype(jnp.int32)
        own = jnp.take_along_axis(logits, batch["label"][:, None], axis=-1)
        above = ~(logits <= own)  # also where a logit is not a number, which must not count as right
        metrics["correct_top5"] = ((above.sum(axis=-1) < 5) * counted).sum(dtype=jnp.int32)
        classes = logits.shape[-1]
        if classes <= CONFUSION_CLASSES:
            label, prediction, number = map(_whole, (batch["label"], logits.argmax(axis=-1), counted))
            metrics["confusion"] = jnp.zeros((classes, classes), jnp.int32).at[label, prediction].add(number)
        return _sum_over(axis_name, metrics)

    return eval_step


def cross_entropy(logits: Array, targets: Array, label_smoothing: float = 0.0) -> Array:
    """Returns the softmax cross-entropy (B,) of logits (B, K) with smoothed targets, in nats.

    Targets are labels (B,), or the share of each class (B, K).
    """
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def _check_batch(batch: Batch) -> None:
    """Asserts, while the step is traced, that a batch is what the contract says."""
    chex.assert_rank([batch["image"], batch["label"], batch["mask"]], [4, 1, 1])
    chex.assert_equal_shape_prefix([batch["image"], batch["label"], batch["mask"]], 1)
    chex.assert_type([batch["image"], batch["label"]], [jnp.uint8, jnp.int32])


def _whole(x: Array) -> Array:
    """Puts an array whole on every device if it is split by explicit sharding."""
    placed = jax.typeof(x).sharding
    return jax.reshard(x, NamedSharding(placed.mesh, PartitionSpec())) if any(placed.spec) else x


def _metrics(logits: Array, losses: Array, labels: Array, mask: Array) -> Metrics:
    counted = mask.astype(jnp.int32)
    return {
        "loss": (losses * mask).sum(),
        "correct": ((logits.argmax(axis=-1) == labels) * counted).sum(dtype=jnp.int32),
        "count": counted.sum(dtype=jnp.int32),
    }


def _over_micro_batches(function: Callable[[Batch], tuple[Any, Any]], batch: Batch, count: int) -> tuple[Any, Any]:
    """Applies `function(part) -> (terms, others)` to each of `count` equal parts of a batch, one after another.

    Returns the sums of the terms, and the others with a first axis of parts.
    """
    if count == 1:  # no zeros to add to: each is a pass over all gradients
        terms, others = function(batch)
        return terms, jax.tree.map(lambda leaf: leaf[None], others)

    def cut(leaf):
        placed = jax.typeof(leaf).sharding  # names axes under explicit sharding alone
        sharding = NamedSharding(placed.mesh, PartitionSpec(None, *placed.spec)) if any(placed.spec) else None
        return jnp.reshape(leaf, (count, leaf.shape[0] // count, *leaf.shape[1:]), out_sharding=sharding)

    parts = jax.tree.map(cut, batch)
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], parts))
    nothing = jax.tree.map(jnp.zeros_like, shapes)

    def add(sums, part):
        terms, others = function(part)
        return jax.tree.map(jnp.add, sums, terms), others

    return jax.lax.scan(add, nothing, parts)


def _sum_over(axis_name: AxisName | None, tree: Any) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
