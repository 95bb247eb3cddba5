"""One step of training and one of evaluation, each written once, for one device's share of a batch."""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxcnn.training.state import TrainState

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]
Preprocess = Callable[..., Array]

# Above this many classes the confusion matrix is left out of the metrics: it would weigh more than the network.
CONFUSION_CLASSES = 1000
# Szegedy et al., "Going Deeper with Convolutions", 2014, section 5.
AUXILIARY_WEIGHT = 0.3


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    *,
    label_smoothing: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `train_step(state, batch, axis_name=None) -> (state, metrics)`, a pure function.

    The loss is softmax cross-entropy, averaged over the examples whose mask is 1, plus 0.3 of that of each
    auxiliary head, which a model sows into `aux_logits`; the metrics are of the main head alone. With `axis_name`
    the batch is one device's share, and gradients, statistics and metrics are those of the whole.

    Args:
      model: network, called with `train=True`; dropout draws from the key of (seed, step, device).
      optimizer: of optax.
      preprocess: `preprocess(images, key=key)` from uint8 to the network's input, augmented.
      label_smoothing: the share e of each target spread over all classes: (1 - e) one_hot + e / classes.
    """

    def train_step(state: TrainState, batch: Batch, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
        _check_batch(batch)
        key = jax.random.fold_in(state.rng, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        augment_key, dropout_key = jax.random.split(key)
        images = preprocess(batch["image"], key=augment_key)
        count = _sum_over(axis_name, batch["mask"].sum())

        def mean_loss(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats", "aux_logits"],
                rngs={"dropout": dropout_key},
            )
            losses = cross_entropy(logits, batch["label"], label_smoothing)
            total = losses
            for auxiliary in jax.tree.leaves(updated.get("aux_logits", {})):
                total = total + AUXILIARY_WEIGHT * cross_entropy(auxiliary, batch["label"], label_smoothing)
            return (total * batch["mask"]).sum() / count, (logits, losses, updated.get("batch_stats", {}))

        gradients, (logits, losses, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
        gradients = _sum_over(axis_name, gradients)
        if axis_name is not None:
            batch_stats = jax.lax.pmean(batch_stats, axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, _sum_over(axis_name, _metrics(logits, losses, batch))

    return train_step


def make_eval_step(model: nn.Module, preprocess: Preprocess) -> Callable[..., Metrics]:
    """Returns `eval_step(state, batch, axis_name=None) -> metrics`, a pure function.

    The metrics are sums and counts over the examples whose mask is 1: those of training, `correct_top5`, and
    `confusion` (classes, classes) int32, rows by label and columns by prediction, up to 1,000 classes.
    """

    def eval_step(state: TrainState, batch: Batch, axis_name: str | None = None) -> Metrics:
        _check_batch(batch)
        logits = model.apply(state.variables, preprocess(batch["image"]), train=False)
        losses = cross_entropy(logits, batch["label"])
        metrics = _metrics(logits, losses, batch)
        counted = batch["mask"].astype(jnp.int32)
        own = jnp.take_along_axis(logits, batch["label"][:, None], axis=-1)
        above = ~(logits <= own)  # also where a logit is not a number, which must not count as right
        metrics["correct_top5"] = ((above.sum(axis=-1) < 5) * counted).sum(dtype=jnp.int32)
        classes = logits.shape[-1]
        if classes <= CONFUSION_CLASSES:
            cell = batch["label"], logits.argmax(axis=-1)
            metrics["confusion"] = jnp.zeros((classes, classes), jnp.int32).at[cell].add(counted)
        return _sum_over(axis_name, metrics)

    return eval_step


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Returns the softmax cross-entropy (B,) of logits (B, K) with smoothed one-hot labels (B,), in nats."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def _check_batch(batch: Batch) -> None:
    """Asserts, while the step is traced, that a batch is what the contract says."""
    chex.assert_rank([batch["image"], batch["label"], batch["mask"]], [4, 1, 1])
    chex.assert_equal_shape_prefix([batch["image"], batch["label"], batch["mask"]], 1)
    chex.assert_type([batch["image"], batch["label"]], [jnp.uint8, jnp.int32])


def _metrics(logits: Array, losses: Array, batch: Batch) -> Metrics:
    counted = batch["mask"].astype(jnp.int32)
    return {
        "loss": (losses * batch["mask"]).sum(),
        "correct": ((logits.argmax(axis=-1) == batch["label"]) * counted).sum(dtype=jnp.int32),
        "count": counted.sum(dtype=jnp.int32),
    }


def _sum_over(axis_name: str | None, tree: Any) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
