"""Exact evaluation: every example counted once, whatever the batch size."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.config import TrainConfig
from flaxcnn.data.sampler import evaluation_batches
from flaxcnn.data.stream import Request
from flaxcnn.errors import UserError
from flaxcnn.training.compilation import jit_in_haste
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.feed import Data, Split, assemble
from flaxcnn.training.parallel import Program, Strategy
from flaxcnn.training.state import TrainState
from flaxcnn.training.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result on a split.

    Attributes:
      count: examples evaluated: with those left out, the size of the split.
      loss: mean cross-entropy, without label smoothing, in nats.
      accuracy: share of examples whose best class is their label.
      accuracy_top5: share whose label is among the best five.
      confusion: (classes, classes) int array, rows by label and columns by prediction; None above 1,000 classes.
      left_out: examples that cannot be read; 0 unless `data.bad_images` is "skip".
    """

    count: int
    loss: float
    accuracy: float
    accuracy_top5: float
    confusion: np.ndarray | None
    left_out: int = 0

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers that are logged."""
        names = ("loss", "accuracy", "accuracy_top5", "count", *(["left_out"] if self.left_out else []))
        return {name: getattr(self, name) for name in names}

    @property
    def class_accuracy(self) -> np.ndarray | None:
        """Accuracy of each class, (classes,) float; not a number where the split has none of a class."""
        return None if self.confusion is None else class_accuracy(self.confusion)


def evaluation_batch_size(config: TrainConfig, num_examples: int, strategy: Strategy) -> int:
    """Returns the number of examples that are evaluated at a time, over all devices, each with an equal share."""
    return -(-min(config.evaluation.batch_size, num_examples) // strategy.num_devices) * strategy.num_devices


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Returns the share of each class that was right, by a confusion matrix; NaN for a class without examples."""
    totals = confusion.sum(axis=1)
    return np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.nan)


def make_evaluator(experiment: Experiment, strategy: Strategy) -> Callable[[TrainState, Split], Evaluation]:
    """Returns `evaluate(state, split) -> Evaluation`, for one split.

    It raises UserError if every picture of the split had to be left out.
    """
    config = experiment.config
    eval_step = make_eval_step(experiment.model, experiment.views)

    def evaluate_batch(state: TrainState, data: Data, given: Data, axis_name: str | None) -> Any:
        return eval_step(state, assemble(data, given), axis_name=axis_name)

    add = jit_in_haste(functools.partial(jax.tree.map, jnp.add))
    compiled: list[Program] = []

    def evaluate(state: TrainState, split: Split) -> Evaluation:
        size = evaluation_batch_size(config, len(split), strategy)
        requests = [Request(0, *batch) for batch in evaluation_batches(len(split), size, **strategy.process)]
        if not compiled:
            arguments = (state, split.data, split.blank(size // strategy.process["process_count"]))
            compiled.append(strategy.compile(evaluate_batch, arguments, split=(2,)))
        (program,), totals = compiled, None
        with contextlib.closing(split.batches(iter(requests))) as batches:
            for _ in requests:
                metrics = program(state, split.data, batches.next())
                totals = metrics if totals is None else add(totals, metrics)
            batches.check()
        totals = jax.device_get(totals)
        count, left_out = int(totals["count"]), split.count_bad()
        if count + left_out != len(split):
            raise RuntimeError(f"evaluated {count} of {len(split)} examples, {left_out} of which cannot be read")
        if not count:
            raise UserError(f"no picture of split {split.source.split!r} of {split.source.name} can be read")
        return Evaluation(
            count=count,
            left_out=left_out,
            loss=float(totals["loss"]) / count,
            accuracy=int(totals["correct"]) / count,
            accuracy_top5=int(totals["correct_top5"]) / count,
            confusion=totals.get("confusion"),
        )

    return evaluate
