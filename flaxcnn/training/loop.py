"""The loop: a configuration and a work directory in, a trained network and its numbers out."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console

from flaxcnn.config import TrainConfig, to_steps
from flaxcnn.data import datasets
from flaxcnn.data.sampler import training_batch
from flaxcnn.errors import UserError
from flaxcnn.training import workdir as workdir_lib
from flaxcnn.training.checkpoint import Checkpoints
from flaxcnn.training.evaluation import Data, Evaluation, gather, make_evaluator
from flaxcnn.training.experiment import Experiment, check_config, make_experiment
from flaxcnn.training.interrupt import Interrupt
from flaxcnn.training.logging import Recorder, say
from flaxcnn.training.report import print_evaluation, write_results
from flaxcnn.training.state import Carry, zero_metrics
from flaxcnn.training.step import make_train_step


class Interrupted(Exception):
    """The run was asked to stop by a signal, and saved; `exit_code` is the shell's for that signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def fit(config: TrainConfig, workdir: str | Path, *, console: rich.console.Console | None = None) -> Evaluation:
    """Trains what a configuration describes, continuing where the work directory left off, and evaluates it.

    Args:
      config: of the run.
      workdir: folder of the run, made if missing; see `flaxcnn.training.workdir` for what it holds.
      console: where progress is printed; None for standard output.

    Returns:
      The evaluation of the final parameters on the test split.

    Raises:
      UserError: the configuration cannot work, the data is not there, or the folder holds another experiment, and
        nothing has been written; or training diverged, and the checkpoints are from before.
      Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    console = console or rich.console.Console()
    workdir = Path(workdir)
    check_config(config)
    changes = workdir_lib.check_usable(workdir, config)
    train, test = load_split(config, config.data.train_split), load_split(config, config.data.test_split)
    experiment = make_experiment(config, train.class_names, train.images.shape[1:])
    plan = Plan(config, len(train))
    workdir_lib.create(workdir, experiment)
    say(
        console,
        f"{config.model.name} on {config.data.name}: {len(train):,} training and {len(test):,} test images, "
        f"{plan.total:,} steps of {config.batch_size}, in {workdir}",
    )
    for change in changes:
        say(console, f"changed since the checkpoint: {change}")

    evaluate = make_evaluator(experiment)
    train, test = to_device(train), to_device(test)
    with Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints:
        carry, evaluation = _train(experiment, plan, evaluate, train, test, workdir, checkpoints, console)
    if evaluation is None:
        evaluation = evaluate(carry.state, test)
    step = int(carry.state.step)
    write_results(workdir, experiment, evaluation, step=step)
    print_evaluation(
        console, experiment, evaluation, split=config.data.test_split, checkpoint=f"after step {step:,}"
    )
    say(console, f"results in {workdir}")
    return evaluation


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is due when, in steps counted from 1.

    Raises:
      UserError: an epoch has no whole batch.
    """

    config: TrainConfig
    num_examples: int

    def __post_init__(self):
        if not self.per_epoch:
            raise UserError(
                f"batch_size is {self.config.batch_size}; split {self.config.data.train_split!r} of "
                f"{self.config.data.name} has only {self.num_examples} examples"
            )
        if self.total >= 2**31:
            raise UserError(f"duration is {self.config.duration!r}, {self.total:,} steps; it must be below 2**31")

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.num_examples // self.config.batch_size

    @property
    def total(self) -> int:
        """Steps of the run."""
        return max(to_steps(self.config.duration, self.per_epoch), 1)

    def ends_epoch(self, step: int) -> bool:
        """Returns whether the step is the last of an epoch, or of the run."""
        return self._due(step, "1 epoch")

    def logs(self, step: int) -> bool:
        """Returns whether a training record is due."""
        return self._due(step, self.config.logging.every) or self.ends_epoch(step)

    def evaluates(self, step: int) -> bool:
        """Returns whether an evaluation is due."""
        return self._due(step, self.config.evaluation.every)

    def saves(self, step: int) -> bool:
        """Returns whether a checkpoint is due."""
        return self._due(step, self.config.checkpoint.every)

    def indices(self, step: int) -> np.ndarray:
        """Returns the numbers of the examples that the step sees."""
        epoch, step_of_epoch = divmod(step - 1, self.per_epoch)
        sizes = {"batch_size": self.config.batch_size, "num_examples": self.num_examples}
        return training_batch(self.config.seed, epoch, step_of_epoch, **sizes)

    def _due(self, step: int, every: str) -> bool:
        return step % max(to_steps(every, self.per_epoch), 1) == 0 or step == self.total


def _train(
    experiment: Experiment,
    plan: Plan,
    evaluate: Callable[..., Evaluation],
    train: Data,
    test: Data,
    workdir: Path,
    checkpoints: Checkpoints,
    console: rich.console.Console,
) -> tuple[Carry, Evaluation | None]:
    """Runs from the newest checkpoint, or the beginning, to the end; nothing in a step waits for the device."""
    schedule, optimizer = experiment.schedule(plan.per_epoch), experiment.optimizer(plan.per_epoch)
    train_batch = make_train_batch(experiment, optimizer)
    carry = Carry.start(experiment.create_state(optimizer))
    if checkpoints.latest_step is not None:
        carry = checkpoints.restore(checkpoints.latest_step, carry)
    step, evaluation = int(carry.state.step), None
    if step >= plan.total:
        say(console, f"{workdir} is complete; a longer --config.duration or another --workdir trains on")
    elif step:
        say(console, f"continuing {workdir} after step {step:,} of {plan.total:,}")

    sizes = {"total": plan.total, "per_epoch": plan.per_epoch, "batch_size": plan.config.batch_size}
    with Recorder(workdir, console, start=step, **sizes) as recorder, Interrupt() as interrupt:
        while step < plan.total:
            step += 1
            recorder.tick(step)
            carry, evaluation = train_batch(carry, train, plan.indices(step)), None
            if plan.logs(step) or plan.evaluates(step) or plan.saves(step) or interrupt.received:
                _check_finite(carry, step)
            if plan.logs(step):
                recorder.interval(step, _means(carry.interval), float(schedule(step - 1)))
                carry = carry.replace(interval=zero_metrics())
            if plan.evaluates(step):
                evaluation = evaluate(carry.state, test)
                recorder.test(step, evaluation.scalars)
            if plan.ends_epoch(step):
                recorder.epoch(step, _means(carry.epoch), evaluation and evaluation.accuracy)
                carry = carry.replace(epoch=zero_metrics())
            if plan.saves(step) or interrupt.received:
                recorder.flush()
                checkpoints.save(step, carry, evaluation and evaluation.accuracy)
            if interrupt.received and step < plan.total:
                message = f"stopped and saved after step {step:,} of {plan.total:,}; the same command continues"
                raise Interrupted(message, 128 + interrupt.received)
    return carry, evaluation


def make_train_batch(
    experiment: Experiment, optimizer: optax.GradientTransformation
) -> Callable[[Carry, Data, np.ndarray], Carry]:
    """Returns the compiled step of the loop: gathers a batch, takes the step, and adds up the metrics."""
    train_step = make_train_step(
        experiment.model, optimizer, experiment.preprocess, label_smoothing=experiment.config.label_smoothing
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def train_batch(carry: Carry, data: Data, indices: jax.Array) -> Carry:
        batch = gather(data, indices, jnp.ones(indices.shape, jnp.float32))
        state, metrics = train_step(carry.state, batch)
        add = functools.partial(jax.tree.map, jnp.add)
        return Carry(state, interval=add(carry.interval, metrics), epoch=add(carry.epoch, metrics))

    return train_batch


def load_split(config: TrainConfig, split: str) -> datasets.ImageDataset:
    """Reads a split of the configured data set, if it takes at most a quarter of the memory."""
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return datasets.load(
        config.data.name,
        split,
        data_dir=config.data.data_dir,
        image_size=config.data.image_size,
        limit_bytes=memory // 4,
    )


def to_device(dataset: datasets.ImageDataset) -> Data:
    """Puts a split on the device as it is: image uint8, label int32."""
    return jax.device_put({"image": dataset.images, "label": dataset.labels}, jax.devices()[0])


def _means(sums: dict[str, jax.Array]) -> dict[str, float]:
    """Fetches sums of metrics and returns their means."""
    sums = jax.device_get(sums)
    count = max(int(sums["count"]), 1)
    return {"loss": float(sums["loss"]) / count, "accuracy": int(sums["correct"]) / count}


@jax.jit
def _is_finite(carry: Carry) -> jax.Array:
    sums = [jnp.sum(leaf) for leaf in jax.tree.leaves((carry.state.params, carry.epoch["loss"]))]
    return jnp.isfinite(jnp.stack([jnp.asarray(total, jnp.float32) for total in sums])).all()


def _check_finite(carry: Carry, step: int) -> None:
    """Raises `UserError` if training has diverged, before that is evaluated or saved."""
    if not _is_finite(carry):
        raise UserError(
            f"training diverged by step {step:,}: the loss or a parameter is not finite; lower "
            f"optimizer.learning_rate or lengthen schedule.warmup, and start in a new --workdir"
        )
