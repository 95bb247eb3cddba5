"""The loop: a configuration and a work directory in, a trained network and its numbers out."""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
from flaxcnn.training.logging import MetricsLog, Progress
from flaxcnn.training.report import print_evaluation, write_results
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
      UserError: the configuration cannot work, the data is not there, or the folder holds another experiment.
        Nothing has been written then.
      Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    console = console or rich.console.Console()
    workdir = Path(workdir)
    check_config(config)
    changes = workdir_lib.check_usable(workdir, config)
    train, test = load_split(config, config.data.train_split), load_split(config, config.data.test_split)
    experiment = make_experiment(config, train.class_names, train.images.shape[1:])
    run = _Run(experiment, len(train))
    workdir_lib.create(workdir, experiment)
    for change in changes:
        console.print(f"changed since the checkpoint: {change}", highlight=False, soft_wrap=True, markup=False)

    device_data = to_device(train), to_device(test)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    try:
        evaluation = run.train(*device_data, workdir, checkpoints, console)
    finally:
        checkpoints.close()
    write_results(workdir, experiment, evaluation, step=run.total_steps)
    print_evaluation(
        console, experiment, evaluation, split=config.data.test_split, checkpoint=f"after step {run.total_steps:,}"
    )
    console.print(f"results in {workdir}", highlight=False, soft_wrap=True, markup=False)
    return evaluation


def load_split(config: TrainConfig, split: str) -> datasets.ImageDataset:
    """Reads a split of the configured data set, if it fits beside the network."""
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


class _Run:
    """The compiled functions of a run, and the loop that calls them."""

    def __init__(self, experiment: Experiment, num_examples: int):
        config = experiment.config
        self.config, self.experiment, self.num_examples = config, experiment, num_examples
        self.steps_per_epoch = num_examples // config.batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"batch_size is {config.batch_size}; split {config.data.train_split!r} of {config.data.name} has "
                f"only {num_examples} examples"
            )
        self.total_steps = self._steps(config.duration)
        self.schedule = experiment.schedule(self.steps_per_epoch)
        self.optimizer = experiment.optimizer(self.steps_per_epoch)
        self.evaluate = make_evaluator(experiment)
        self.train_batch = make_train_batch(experiment, self.optimizer)

    def _steps(self, duration: str) -> int:
        return max(to_steps(duration, self.steps_per_epoch), 1)

    def train(self, train: Data, test: Data, workdir: Path, checkpoints: Checkpoints, console) -> Evaluation:
        """Runs from the newest checkpoint, or the beginning, to the end."""
        config, total = self.config, self.total_steps
        log_every, eval_every, save_every = (
            self._steps(section.every) for section in (config.logging, config.evaluation, config.checkpoint)
        )
        carry = self._initial(checkpoints)
        step = first_step = int(carry["state"].step)
        if step:
            progress_line = f"continuing {workdir} after step {step:,} of {total:,}"
            console.print(progress_line, highlight=False, soft_wrap=True, markup=False)
        log = MetricsLog(workdir, start_step=step)
        progress = Progress(
            console, total_steps=total, steps_per_epoch=self.steps_per_epoch, start_step=step
        )
        rate = _Rate(config.batch_size)
        evaluation = None
        try:
            with Interrupt() as interrupt:
                while step < total:
                    epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
                    indices = training_batch(
                        config.seed,
                        epoch,
                        step_of_epoch,
                        batch_size=config.batch_size,
                        num_examples=self.num_examples,
                    )
                    carry = self.train_batch(carry, train, indices)
                    step += 1
                    if step == first_step + 1:
                        rate.restart(step)  # what came before was compilation
                    evaluation = None
                    ends_epoch = step % self.steps_per_epoch == 0 or step == total
                    if step % log_every == 0 or ends_epoch:
                        self._log_interval(carry, step, log, progress, rate)
                    if step % eval_every == 0 or step == total:
                        evaluation = self._evaluate(carry, test, step, log)
                    if ends_epoch:
                        self._log_epoch(carry, step, log, progress, rate, evaluation)
                    if step % save_every == 0 or step == total or interrupt.received:
                        self._save(checkpoints, carry, step, evaluation)
                    if step % log_every == 0 or ends_epoch or evaluation:
                        rate.restart(step)
                    if interrupt.received and step < total:
                        raise Interrupted(
                            f"stopped and saved after step {step:,} of {total:,}; the same command continues",
                            128 + interrupt.received,
                        )
        finally:
            progress.close()
            log.close()
        return evaluation or self.evaluate(carry["state"], test)

    def _initial(self, checkpoints: Checkpoints) -> dict[str, Any]:
        """What is carried from step to step: the state, and the sums of the metrics since they were last logged."""
        carry = {"state": self.experiment.create_state(self.optimizer), "interval": _zeros(), "epoch": _zeros()}
        carry = jax.device_put(carry, jax.devices()[0])
        return carry if checkpoints.latest_step is None else checkpoints.restore(checkpoints.latest_step, carry)

    def _log_interval(self, carry, step, log, progress, rate) -> None:
        means = _means(jax.device_get(carry["interval"]))
        carry["interval"] = jax.device_put(_zeros(), jax.devices()[0])
        if not np.isfinite(means["loss"]):
            raise UserError(
                f"the loss is {means['loss']} at step {step:,}: training diverged; lower optimizer.learning_rate "
                f"(now {self.config.optimizer.learning_rate}) or lengthen schedule.warmup, and use a new --workdir"
            )
        rate.measure(step)
        learning_rate = float(self.schedule(step - 1))
        values = {**means, "learning_rate": learning_rate, "images_per_second": rate.images_per_second}
        log.write("interval", step, step / self.steps_per_epoch, values)
        progress.update(
            step, **means, images_per_second=rate.images_per_second, steps_per_second=rate.steps_per_second
        )

    def _evaluate(self, carry, test, step, log) -> Evaluation:
        evaluation = self.evaluate(carry["state"], test)
        log.write("test", step, step / self.steps_per_epoch, evaluation.scalars)
        return evaluation

    def _log_epoch(self, carry, step, log, progress, rate, evaluation) -> None:
        means = _means(jax.device_get(carry["epoch"]))
        carry["epoch"] = jax.device_put(_zeros(), jax.devices()[0])
        log.write("epoch", step, step / self.steps_per_epoch, means)
        test = evaluation.accuracy if evaluation else None
        progress.end_epoch(step, **means, images_per_second=rate.images_per_second, test=test)

    def _save(self, checkpoints, carry, step, evaluation) -> None:
        if not np.isfinite(float(carry["epoch"]["loss"])):
            raise UserError(f"the loss is not finite at step {step:,}: training diverged; nothing was saved")
        checkpoints.save(step, carry, evaluation.accuracy if evaluation else None)


def make_train_batch(experiment: Experiment, optimizer) -> Callable[[dict[str, Any], Data, np.ndarray], dict[str, Any]]:
    """Returns the compiled step of the loop: gathers a batch, takes the step, and adds up the metrics."""
    train_step = make_train_step(
        experiment.model, optimizer, experiment.preprocess, label_smoothing=experiment.config.label_smoothing
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def train_batch(carry, data, indices):
        batch = gather(data, indices, jnp.ones(indices.shape, jnp.float32))
        state, metrics = train_step(carry["state"], batch)
        sums = {name: jax.tree.map(jnp.add, carry[name], metrics) for name in ("interval", "epoch")}
        return {"state": state, **sums}

    return train_batch


class _Rate:
    """Images and steps a second since the last restart."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.images_per_second = self.steps_per_second = 0.0

    def restart(self, step: int) -> None:
        self._step, self._time = step, time.perf_counter()

    def measure(self, step: int) -> None:
        if step > self._step:
            self.steps_per_second = (step - self._step) / max(time.perf_counter() - self._time, 1e-9)
            self.images_per_second = self.steps_per_second * self._batch_size


def _zeros() -> dict[str, np.ndarray]:
    floats = jax.dtypes.canonicalize_dtype(np.float64) if jax.config.jax_enable_x64 else np.float32
    return {"loss": np.zeros((), floats), "correct": np.zeros((), np.int32), "count": np.zeros((), np.int32)}


def _means(sums: dict[str, np.ndarray]) -> dict[str, float]:
    count = max(int(sums["count"]), 1)
    return {"loss": float(sums["loss"]) / count, "accuracy": int(sums["correct"]) / count}
