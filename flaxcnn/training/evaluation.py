"""Exact evaluation: every example counted once, whatever the batch size."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.sampler import evaluation_batches
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.parallel import Program, Strategy
from flaxcnn.training.state import TrainState
from flaxcnn.training.step import make_eval_step

Array = jax.Array
Data = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result on a split.

    Attributes:
      count: examples evaluated, equal to the size of the split.
      loss: mean cross-entropy, without label smoothing, in nats.
      accuracy: share of examples whose best class is their label.
      accuracy_top5: share whose label is among the best five.
      confusion: (classes, classes) int array, rows by label and columns by prediction; None above 1,000 classes.
    """

    count: int
    loss: float
    accuracy: float
    accuracy_top5: float
    confusion: np.ndarray | None

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers that are logged."""
        names = ("loss", "accuracy", "accuracy_top5", "count")
        return {name: getattr(self, name) for name in names}

    @property
    def class_accuracy(self) -> np.ndarray | None:
        """Accuracy of each class, (classes,) float; not a number where the split has none of a class."""
        if self.confusion is None:
            return None
        totals = self.confusion.sum(axis=1)
        return np.where(totals > 0, np.diag(self.confusion) / np.maximum(totals, 1), np.nan)


def gather(data: Data, indices: Array, mask: Array) -> Data:
    """Returns the batch of the examples with those numbers: image uint8, label int32, mask float32."""
    return {"image": data["image"][indices], "label": data["label"][indices], "mask": mask}


def make_evaluator(experiment: Experiment, strategy: Strategy) -> Callable[[TrainState, Data], Evaluation]:
    """Returns `evaluate(state, data) -> Evaluation`, of arrays that the strategy has put on its devices."""
    eval_step = make_eval_step(experiment.model, experiment.preprocess)

    def evaluate_batch(state: TrainState, data: Data, indices: Array, mask: Array, axis_name: str | None) -> Any:
        return eval_step(state, gather(data, indices, mask), axis_name=axis_name)

    add = jax.jit(lambda totals, metrics: jax.tree.map(jnp.add, totals, metrics))
    programs: dict[int, Program] = {}

    def evaluate(state: TrainState, data: Data) -> Evaluation:
        num_examples = len(data["label"])
        totals = None
        share = -(-min(experiment.config.evaluation.batch_size, num_examples) // strategy.num_devices)
        for indices, mask in evaluation_batches(num_examples, share * strategy.num_devices, **strategy.process):
            arguments = (state, data, strategy.split(indices), strategy.split(mask))
            if num_examples not in programs:
                programs[num_examples] = strategy.compile(evaluate_batch, arguments, split=(2, 3))
            metrics = programs[num_examples](*arguments)
            totals = metrics if totals is None else add(totals, metrics)
        totals = jax.device_get(totals)
        if totals["count"] != num_examples:
            raise RuntimeError(f"evaluated {totals['count']} of {num_examples} examples")
        return Evaluation(
            count=num_examples,
            loss=float(totals["loss"]) / num_examples,
            accuracy=int(totals["correct"]) / num_examples,
            accuracy_top5=int(totals["correct_top5"]) / num_examples,
            confusion=totals.get("confusion"),
        )

    return evaluate
