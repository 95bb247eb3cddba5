"""The evaluation step, a pure function of the state and a (global or per-device) batch."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flaxcnn.inference.views import Views, average_views
from flaxcnn.training.batch_parts import AxisName
from flaxcnn.training.losses import cross_entropy
from flaxcnn.training.metrics import Batch, Metrics, check_batch, example_sums, sum_over_devices
from flaxcnn.training.state import TrainState

Array = jax.Array
# With more classes, the metrics have no confusion matrix, which would take more memory than the network.
CONFUSION_CLASSES = 1000


def make_eval_step(model: nn.Module, views: Views) -> Callable[..., Metrics]:
    """Returns `eval_step(state, batch, axis_name=None) -> metrics`, a pure function.

    The batch and `axis_name` are those of a training step, see `make_train_step`. The metrics are sums over the
    examples whose mask is 1: `loss`, `correct`, `correct_top5`, `count` and, for up to 1,000 classes, `confusion`
    (classes, classes) int32 with a row per label and a column per prediction.

    Args:
      model: network, called with `train=False`.
      views: `views(images)`, which maps uint8 images (B, H, W, C) to a list of model inputs. With several model
        inputs per image (test-time augmentation) the softmax is averaged, see `average_views`.
    """

    def eval_step(state: TrainState, batch: Batch, axis_name: AxisName | None = None) -> Metrics:
        check_batch(batch)
        logits = average_views(model, state.variables, views(batch["image"]))
        losses = cross_entropy(logits, batch["label"])
        metrics = example_sums(logits, losses, batch["label"], batch["mask"])
        counted = batch["mask"].astype(jnp.int32)
        own = jnp.take_along_axis(logits, batch["label"][:, None], axis=-1)
        above = ~(logits <= own)  # a NaN must not count as correct
        metrics["correct_top5"] = ((above.sum(axis=-1) < 5) * counted).sum(dtype=jnp.int32)
        classes = logits.shape[-1]
        if classes <= CONFUSION_CLASSES:
            label, prediction, number = map(_whole, (batch["label"], logits.argmax(axis=-1), counted))
            metrics["confusion"] = jnp.zeros((classes, classes), jnp.int32).at[label, prediction].add(number)
        return sum_over_devices(axis_name, metrics)

    return eval_step


def _whole(x: Array) -> Array:
    """Replicates an array over all devices if explicit sharding shards it."""
    placed = jax.typeof(x).sharding
    return jax.reshard(x, NamedSharding(placed.mesh, PartitionSpec())) if any(placed.spec) else x
