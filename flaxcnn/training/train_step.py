"""The training step, a pure function of the state and a (global or per-device) batch."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from flaxcnn.errors import UserError, first_line
from flaxcnn.training.batch_parts import AxisName, apply_to_part, as_per_device, merge_statistics
from flaxcnn.training.finetune import select, select_layers
from flaxcnn.training.losses import AUXILIARY_WEIGHT, cross_entropy
from flaxcnn.training.metrics import Batch, Metrics, check_batch, example_sums, sum_over_devices
from flaxcnn.training.state import TrainState

Array = jax.Array
Preprocess = Callable[..., Array]
Mix = Callable[[Array, Array, Array, Array], tuple[Array, Array, Array]]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    *,
    mix: Mix | None = None,
    label_smoothing: float = 0.0,
    micro_batches: int = 1,
    ema_decay: float = 0.0,
    frozen: Sequence[str] = (),
    frozen_batch_stats: bool = True,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `train_step(state, batch, axis_name=None) -> (state, metrics)`, a pure function.

    The batch is a dict of image (B, H, W, C) uint8, label (B,) int32 and mask (B,) float32. It may also contain
    sample_id (B, 2) int32, the epoch and the index of each example. The sample id and the seed determine the
    augmentation of the example. The default sample id is the step and the position in the global batch.

    The loss is softmax cross-entropy, averaged over the examples whose mask is 1. To it is added 0.3 times the loss
    of each auxiliary head, whose logits the model sows into `aux_logits`.

    The metrics are `loss` (sum over the examples, without auxiliary heads), `correct` (number of correctly
    classified examples), `count` (number of examples) and `skipped` (1 if the update was skipped, otherwise 0).

    Inside `shard_map`, `pmap` or `vmap` over an axis `axis_name`, each device gets its part of the batch, and
    gradients, statistics and metrics are reduced over the global batch. Dropout depends on the seed, the step and
    the position in the global batch, not on the number of devices.

    If the loss, a gradient or a running statistic is not finite, the update is skipped: params, batch_stats,
    opt_state and ema are unchanged, the loss scale is halved, and the metrics have skipped = 1 and the rest 0.

    Args:
      model: network, called with `train=True`.
      optimizer: optax optimizer. If its update function takes extra arguments with the following names, it gets
        them for the global batch: `value` (mean loss) and `grad` (gradients); `value_fn(params)` and
        `grad_fn(params, number)`, which compute loss and gradients at other parameters; `key`, a PRNG key of the
        step.
      preprocess: `preprocess(images, key=key, sample_ids=sample_ids)`, which maps uint8 images (B, H, W, C) to
        model inputs. The augmentation of an image depends on the key and on its sample id, a row of `sample_ids`
        (B, 2).
      mix: `mix(key, images, targets, mask)`, which mixes images and targets within the batch, and returns mixed
        images, mixed targets and their mask. Targets (B, classes) sum to one. All micro-batches and devices get
        equal keys.
      label_smoothing: fraction e of each target that is spread over all classes: (1 - e) one_hot + e / classes.
      micro_batches: number of gradient accumulation steps. The per-device batch is split into this many equal
        parts, processed one after another, and their gradients are summed. BatchNorm normalizes over each
        micro-batch (with `bn_axis_name`, over the micro-batches of all devices). Its running statistics are updated
        once, with those of the global batch.
      ema_decay: decay of the parameter average, if the state keeps one. The decay is warmed up: at step t, counted
        from 0, it is min(ema_decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage.
      frozen: patterns of the parameters that stay as they are, as in `flaxcnn.training.finetune.select`. Their
        gradients are not computed; the optimizer gets zeros.
      frozen_batch_stats: whether BatchNorm layers that match `frozen` normalize with their running statistics and
        leave them unchanged.

    Raises:
      UserError: while the step is traced, if the optimizer needs other arguments, such as gradients per example, or
        if a pattern matches no parameter.
    """

    def train_step(
        state: TrainState, batch: Batch, axis_name: AxisName | None = None
    ) -> tuple[TrainState, Metrics]:
        check_batch(batch)
        size = len(batch["label"])
        if size % micro_batches:
            raise ValueError(f"{micro_batches} micro-batches do not divide the {size} examples of a device")
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
        # Adding zeros that are sharded like the batch shards the positions in the same way.
        positions = first + jnp.arange(size, dtype=jnp.int32) + jnp.zeros_like(batch["label"])
        total = size if axis_name is None else size * jax.lax.psum(1, axis_name)
        sample_ids = jnp.stack([jnp.full_like(positions, state.step), positions], axis=1)
        augment_key, rng = jax.random.split(state.rng)
        step_key = jax.random.fold_in(rng, state.step)
        dropout_key, mix_key = jax.random.split(step_key)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
        momenta = {}
        is_frozen = select(state.params, *frozen)
        kept_norms = tuple(frozen) if frozen_batch_stats else ()

        def loss(trained, params, micro_batch):
            images = preprocess(micro_batch["image"], key=augment_key, sample_ids=micro_batch["sample_id"])
            targets, mask = micro_batch["label"], micro_batch["mask"]
            if mix is not None:
                targets = jax.nn.one_hot(targets, model.num_classes, dtype=images.dtype)
                images, targets, mask = mix(mix_key, images, targets, mask)
            variables = {"params": _merged(is_frozen, params, trained), "batch_stats": state.batch_stats}
            logits, updated, found = apply_to_part(
                model,
                variables,
                images,
                positions=micro_batch["position"],
                dropout_key=dropout_key,
                kept_norms=kept_norms,
            )
            momenta.update(found)
            losses = cross_entropy(logits, targets, label_smoothing)
            sums = losses
            for auxiliary in jax.tree.leaves(updated.get("aux_logits", {})):
                sums = sums + AUXILIARY_WEIGHT * cross_entropy(auxiliary, targets, label_smoothing)
            # Dividing here, before the sum over devices, keeps the gradients within the range of float16.
            mean = (sums * mask).sum() / total
            labels = targets if targets.ndim == 1 else targets.argmax(axis=-1)
            return mean * scale, (example_sums(logits, losses, labels, mask), updated.get("batch_stats", {}))

        def differentiate(params):
            """Returns (loss, gradients, correction, metrics, batch_stats); all but the last are global.

            Loss and gradients must be multiplied by `correction` to get the mean loss and its gradients. Gradients
            have None in place of frozen parameters. batch_stats has a leading axis of micro-batches.
            """
            # In `jax.shard_map`, JAX would sum the gradients of replicated parameters for each micro-batch. Marked
            # as per-device parameters, their gradients are summed once below, as in `pmap`.
            own = as_per_device(_without(is_frozen, params), axis_name)

            def of_micro_batch(micro_batch):
                (value, (metrics, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(
                    own, params, micro_batch
                )
                return (value, gradients, metrics), batch_stats

            (value, gradients, metrics), batch_stats = _over_micro_batches(
                of_micro_batch, {"sample_id": sample_ids, **batch, "position": positions}, micro_batches
            )
            gradients, metrics = sum_over_devices(axis_name, (gradients, metrics))
            # If all examples are masked, gradients are zero, and the division by 1 keeps them finite.
            correction = total / (jnp.maximum(metrics["count"], 1) * scale)
            return sum_over_devices(axis_name, value), gradients, correction, metrics, batch_stats

        value, gradients, correction, metrics, batch_stats = differentiate(state.params)

        def corrected() -> Any:
            return _scaled(gradients, correction)

        def all_corrected() -> Any:
            """Returns the gradients with zeros for frozen parameters."""
            return _merged(is_frozen, jax.tree.map(jnp.zeros_like, state.params), corrected())

        def extra_arguments() -> dict[str, Any]:
            """Returns the extra arguments that the update function of an optimizer may take."""

            def value_and_gradient(params):
                value, gradients, correction, *_ = differentiate(params)
                zeros = jax.tree.map(jnp.zeros_like, params)
                return value * correction, _merged(is_frozen, zeros, _scaled(gradients, correction))

            # Without this custom derivative and without `check_vma`, JAX would differentiate one device's loss
            # only.
            mean_loss = jax.custom_vjp(lambda params: value_and_gradient(params)[0])
            mean_loss.defvjp(value_and_gradient, lambda gradient, by: (_scaled(gradient, jnp.asarray(by)),))

            def value_fn(params, key=None, grad_fn=None):  # line searches also pass the other extra arguments
                del key, grad_fn
                return mean_loss(params)

            return {
                "value": value * correction,
                "grad": all_corrected(),
                "value_fn": value_fn,
                "grad_fn": lambda params, _: value_and_gradient(params)[1],
                "key": jax.random.fold_in(step_key, 2),  # `split` above derived the keys 0 and 1
            }

        batch_stats = merge_statistics(batch_stats, momenta, axis_name)
        is_kept = select_layers(state.batch_stats, kept_norms)
        batch_stats = _merged(is_kept, state.batch_stats, batch_stats)
        finite = _all_finite((corrected(), batch_stats, metrics["loss"]))
        old = {name: getattr(state, name) for name in ("params", "batch_stats", "opt_state", "ema")}

        def advanced() -> dict[str, Any]:
            updates, opt_state = _update(optimizer, all_corrected(), state, extra_arguments())
            # Adding an update of zero would change the sign of a parameter of -0.0.
            params = _merged(is_frozen, state.params, optax.apply_updates(state.params, updates))
            ema = None
            if state.ema is not None:
                decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
                live = {"params": params, "batch_stats": batch_stats}
                ema = jax.tree.map(
                    lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old), state.ema, live
                )
                ema = _merged({"params": is_frozen, "batch_stats": is_kept}, state.ema, ema)
            new = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state, "ema": ema}
            # Running statistics of float64 feature maps are computed in float64, but keep the dtype of the state.
            return jax.tree.map(lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), new, old)

        kept = _where(finite, advanced, lambda: old)
        loss_scale = None if state.loss_scale is None else state.loss_scale.adjust(finite)
        metrics = {name: jnp.where(finite, value, 0) for name, value in metrics.items()}
        metrics["skipped"] = 1 - finite.astype(jnp.int32)
        return state.replace(step=state.step + 1, loss_scale=loss_scale, **kept), metrics

    return train_step


def _without(mask: Any, tree: Any) -> Any:
    """Returns a tree with None in place of the leaves for which the mask is True."""
    return jax.tree.map(lambda leave_out, leaf: None if leave_out else leaf, mask, tree)


def _merged(mask: Any, chosen: Any, other: Any) -> Any:
    """Returns the leaves of `chosen` for which the mask is True, and otherwise those of `other`."""
    return jax.tree.map(lambda choose, a, b: a if choose else b, mask, chosen, other)


def _scaled(tree: Any, factor: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def _update(
    optimizer: optax.GradientTransformation, gradients: Any, state: TrainState, extra: dict[str, Any]
) -> tuple[Any, optax.OptState]:
    """Calls the update function of an optimizer with those extra arguments that it accepts."""
    parameters = inspect.signature(optimizer.update).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    extra = {name: value for name, value in extra.items() if takes_all or name in parameters}
    try:
        return optimizer.update(gradients, state.opt_state, state.params, **extra)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the optimizer does not work with this step, which gives it {', '.join(extra) or 'gradients'}: "
            f"{first_line(error)}"
        ) from error


def _all_finite(tree: Any) -> Array:
    flags = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
    # Without the barrier, the compiler may copy the conjunction into the update of every parameter. Compilation
    # would then take quadratic time: minutes for a DenseNet.
    return jax.lax.optimization_barrier(flags).all()


def _where(condition: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Returns `yes()` if the condition holds, otherwise `no()`.

    CPUs use `cond`, which updates parameters and momentum in place; `where` would copy both first. Accelerators use
    `where`; with `cond` they would have to wait for the host to select the branch.
    """

    def select(condition: Array) -> Any:
        return jax.tree.map(functools.partial(jnp.where, condition), yes(), no())

    return jax.lax.platform_dependent(condition, cpu=lambda c: jax.lax.cond(c, yes, no), default=select)


def _over_micro_batches(function: Callable[[Batch], tuple[Any, Any]], batch: Batch, count: int) -> tuple[Any, Any]:
    """Applies a function to equal parts of a batch, one after another.

    Args:
      function: `function(micro_batch) -> (terms, others)`.
      batch: arrays with a leading axis of examples.
      count: number of parts.

    Returns:
      The sums of `terms` over the parts, and `others` stacked along a new leading axis.
    """
    if count == 1:  # a sum that starts from zeros would cost one more pass over all gradients
        terms, others = function(batch)
        return terms, jax.tree.map(lambda leaf: leaf[None], others)

    def stack(leaf):
        placed = jax.typeof(leaf).sharding  # its spec names axes only under explicit sharding
        sharding = NamedSharding(placed.mesh, PartitionSpec(None, *placed.spec)) if any(placed.spec) else None
        return jnp.reshape(leaf, (count, leaf.shape[0] // count, *leaf.shape[1:]), out_sharding=sharding)

    stacked = jax.tree.map(stack, batch)
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], stacked))
    zeros = jax.tree.map(jnp.zeros_like, shapes)

    def add(sums, micro_batch):
        terms, others = function(micro_batch)
        return jax.tree.map(jnp.add, sums, terms), others

    return jax.lax.scan(add, zeros, stacked)
