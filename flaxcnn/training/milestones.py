"""Work between steps of the training loop: checks for divergence, logging, evaluation and checkpoints."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.loading.prefetch import Prefetcher
from flaxcnn.errors import UserError
from flaxcnn.parallel.compilation import cheap_jit
from flaxcnn.parallel.processes import raise_on_all_processes
from flaxcnn.runs.checkpoint import Checkpoints
from flaxcnn.runs.recorder import Recorder
from flaxcnn.training.evaluation import Evaluation
from flaxcnn.training.optimizer import learning_rate, observe
from flaxcnn.training.setup import Run
from flaxcnn.training.state import LoopState, TrainState, zeros_like

# After this many consecutive skipped steps, training counts as diverged. The loss scale of float16, which each
# skipped step halves, falls from its initial value to 1 in 15 steps.
MAX_SKIPPED_STEPS = 20

# Evaluations on the test split: "test" of the parameters, and "averaged" of the averaged parameters, if kept.
Evaluations = dict[str, Evaluation]


class Milestones:
    """Logging, evaluation and checkpoints of a run, after the steps at which they are due.

    They wait for the devices, so the loop calls `reach` only if `are_due` returns true.

    Attributes:
      evaluations: evaluations after the last step; empty if it was not evaluated.
    """

    def __init__(
        self,
        run: Run,
        evaluate: Callable[[TrainState], Evaluations],
        batches: Prefetcher,
        recorder: Recorder,
        checkpoints: Checkpoints,
    ):
        self._run, self._evaluate, self._batches = run, evaluate, batches
        self._recorder, self._checkpoints = recorder, checkpoints
        self._schedule = run.experiment.schedule(run.plan.per_epoch)
        self._save_is_due = False
        self.evaluations: Evaluations = {}

    def are_due(self, step: int) -> bool:
        """Returns whether logging, an evaluation or a checkpoint is due after a step, counted from 1."""
        plan = self._run.plan
        self.evaluations = {}
        self._save_is_due = self._save_is_due or plan.saves(step)
        return plan.logs(step) or plan.evaluates(step) or self._save_is_due

    def reach(self, step: int, loop_state: LoopState, *, is_last: bool) -> LoopState:
        """Logs, evaluates and saves a checkpoint after a step, as far as each is due.

        Args:
          step: the step, counted from 1.
          loop_state: the loop state after the step.
          is_last: whether the loop ends after this step; then a checkpoint is saved in any case.

        Returns:
          The loop state to continue with.

        Raises:
          UserError: training has diverged, a batch could not be loaded, or a file cannot be written.
        """
        self._batches.check()
        skipped = check_health(loop_state, step)
        # Read before an evaluation lowers it: the rate of the steps taken.
        rate = learning_rate(self._schedule, loop_state.state.opt_state)
        self._recorder.measure(step, waited=self._batches.idle_seconds)
        if self._run.plan.evaluates(step):
            loop_state = self._evaluated(step, loop_state)
        loop_state = self._logged(step, loop_state, rate)
        # While steps are skipped, parameters do not change, and new checkpoints would replace older, sound ones.
        if (self._save_is_due and not skipped) or is_last:
            accuracy = self.evaluations["test"].accuracy if self.evaluations else None
            self._checkpoints.save(step, loop_state, accuracy)
            self._save_is_due = False
        return loop_state

    def _evaluated(self, step: int, loop_state: LoopState) -> LoopState:
        self.evaluations = self._evaluate(loop_state.state)
        if not self._run.plan.feeds_schedule(step):
            return loop_state
        before = loop_state.state.opt_state
        after = observe(self._run.config.schedule, before, self.evaluations["test"].accuracy)
        if after is before:
            return loop_state
        *others, plateau = cast(tuple, after)
        opt_state = (*others, self._run.strategy.replicate(jax.tree.map(np.asarray, plateau)))
        return loop_state.replace(state=loop_state.state.replace(opt_state=opt_state))

    def _logged(self, step: int, loop_state: LoopState, rate: float) -> LoopState:
        """Writes the records that are due, and resets the sums of metrics that they contain."""
        run, plan, recorder = self._run, self._run.plan, self._recorder
        interval, epoch = _means(loop_state.interval), _means(loop_state.epoch)
        del interval["count"]
        seen = (plan.steps_of_epoch(step) - epoch["skipped"]) * run.config.batch_size
        epoch["left_out"] = seen - epoch.pop("count")
        with raise_on_all_processes():  # only one process writes
            if plan.logs(step):
                recorder.interval(step, interval, rate)
            for kind, evaluation in self.evaluations.items():
                recorder.test(kind, step, evaluation.scalars)
            if plan.ends_epoch(step):
                recorder.epoch(step, epoch, {kind: each.accuracy for kind, each in self.evaluations.items()})
            recorder.flush()
        if plan.logs(step):
            loop_state = loop_state.replace(interval=run.strategy.replicate(zeros_like(loop_state.interval)))
        if plan.ends_epoch(step):
            loop_state = loop_state.replace(epoch=run.strategy.replicate(zeros_like(loop_state.epoch)))
        return loop_state


def check_health(loop_state: LoopState, step: int) -> int:
    """Returns the number of consecutive skipped steps up to the current step.

    Raises:
      UserError: training has diverged: the loss or a parameter is not finite, or too many steps were skipped.
    """
    health: Any = jax.device_get(_health(loop_state))
    finite, skipped = health
    if finite and skipped < MAX_SKIPPED_STEPS:
        return int(skipped)
    what = "the loss or a parameter is" if not finite else f"the gradients of the last {skipped} steps were"
    raise UserError(
        f"training diverged by step {step:,}: {what} not finite; lower optimizer.learning_rate or lengthen "
        f"schedule.warmup, and start in a new --workdir"
    )


@cheap_jit
def _health(loop_state: LoopState) -> tuple[jax.Array, jax.Array]:
    leaves = jax.tree.leaves((loop_state.state.params, loop_state.state.ema, loop_state.epoch["loss"]))
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
    return finite, loop_state.skipped_in_a_row


def _means(sums: Mapping[str, jax.Array]) -> dict[str, float]:
    """Returns means of metrics (NaN without examples) and counts, given sums on the devices."""
    found: Any = jax.device_get(dict(sums))
    count = int(found["count"])
    means = {name: float(found[key]) / count if count else math.nan for name, key in _MEANS.items()}
    return means | {"skipped": int(found["skipped"]), "count": count}


_MEANS = {"loss": "loss", "accuracy": "correct"}
