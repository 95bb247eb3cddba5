"""Exact evaluation of a split: every example counts once, whatever the batch size."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.config import TrainConfig
from flaxcnn.data.loading.batch import Arrays
from flaxcnn.data.loading.loader import Loader
from flaxcnn.data.loading.sampler import evaluation_indices
from flaxcnn.errors import UserError
from flaxcnn.parallel.compilation import cheap_jit
from flaxcnn.parallel.program import Program
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.training.eval_step import make_eval_step
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a split.

    Attributes:
      count: number of evaluated examples. `count + left_out` is the size of the split.
      loss: mean cross-entropy in nats, without label smoothing.
      accuracy: fraction of the examples whose most likely class is their label.
      accuracy_top5: fraction of the examples whose label is among the five most likely classes.
      confusion: confusion matrix (classes, classes), int, with a row per label and a column per prediction; None
        for more than 1,000 classes.
      left_out: number of examples that cannot be read; 0 unless `data.bad_images` is "skip".
    """

    count: int
    loss: float
    accuracy: float
    accuracy_top5: float
    confusion: np.ndarray | None
    left_out: int = 0

    @property
    def scalars(self) -> dict[str, float]:
        """Numbers that are logged, by name: loss, accuracies and counts."""
        names = ("loss", "accuracy", "accuracy_top5", "count", *(["left_out"] if self.left_out else []))
        return {name: getattr(self, name) for name in names}

    @property
    def class_accuracy(self) -> np.ndarray | None:
        """Accuracy of each class, (classes,) float, NaN for a class without examples; None without `confusion`."""
        return None if self.confusion is None else class_accuracy(self.confusion)


def evaluation_batch_size(config: TrainConfig, num_examples: int, strategy: Strategy) -> int:
    """Returns the global batch size of evaluation, a multiple of the number of devices."""
    return -(-min(config.evaluation.batch_size, num_examples) // strategy.num_devices) * strategy.num_devices


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Returns the accuracy of each class, (classes,), from a confusion matrix; NaN for a class without examples."""
    totals = confusion.sum(axis=1)
    return np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.nan)


def make_evaluator(
    experiment: Experiment, strategy: Strategy, loader: Loader
) -> Callable[[TrainState], Evaluation]:
    """Returns a function `evaluate(state) -> Evaluation` that evaluates a split; its first call compiles.

    The function raises `UserError` if no image of the split can be read, or if a batch cannot be loaded.

    Args:
      experiment: configuration, network and preprocessing.
      strategy: placement on the devices.
      loader: loader of the split.
    """
    eval_step = make_eval_step(experiment.model, experiment.views)
    size = evaluation_batch_size(experiment.config, len(loader.dataset), strategy)
    indices = list(evaluation_indices(len(loader.dataset), size, **strategy.process))

    def evaluate_batch(state: TrainState, resident: Arrays, inputs: Arrays, axis_name: str | None) -> Any:
        return eval_step(state, loader.assemble(resident, inputs), axis_name=axis_name)

    add = cheap_jit(functools.partial(jax.tree.map, jnp.add))
    compiled: list[Program] = []

    def evaluate(state: TrainState) -> Evaluation:
        if not compiled:
            inputs = loader.masked_inputs(len(indices[0].indices))
            compiled.append(strategy.compile(evaluate_batch, (state, loader.resident, inputs), sharded=(2,)))
        (program,), totals = compiled, None
        with contextlib.closing(loader.batches(iter(indices))) as batches:
            for _ in indices:
                metrics = program(state, loader.resident, batches.next().inputs)
                totals = metrics if totals is None else add(totals, metrics)
            batches.check()
        return _evaluation(jax.device_get(totals), loader)

    return evaluate


def _evaluation(totals: Any, loader: Loader) -> Evaluation:
    """Returns the evaluation, given sums of the metrics over a split."""
    count, left_out, source = int(totals["count"]), loader.count_bad(), loader.dataset.source
    if count + left_out != len(source):
        raise RuntimeError(f"evaluated {count} of {len(source)} examples, {left_out} of which cannot be read")
    if not count:
        raise UserError(f"no image of split {source.split!r} of {source.name} can be read")
    return Evaluation(
        count=count,
        left_out=left_out,
        loss=float(totals["loss"]) / count,
        accuracy=int(totals["correct"]) / count,
        accuracy_top5=int(totals["correct_top5"]) / count,
        confusion=totals.get("confusion"),
    )
