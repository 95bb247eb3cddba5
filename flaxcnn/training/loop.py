"""The loop: a configuration and a work directory in, a trained network and its numbers out."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
from jax.experimental import multihost_utils

from flaxcnn.config import TrainConfig, to_steps
from flaxcnn.data import datasets
from flaxcnn.data.sampler import training_batch
from flaxcnn.errors import UserError
from flaxcnn.training import memory
from flaxcnn.training import workdir as workdir_lib
from flaxcnn.training.checkpoint import Checkpoints
from flaxcnn.training.compilation import keep_compiled_programs
from flaxcnn.training.distributed import is_primary, together
from flaxcnn.training.evaluation import Data, Evaluation, gather, make_evaluator
from flaxcnn.training.experiment import Experiment, check_config, make_experiment
from flaxcnn.training.interrupt import Interrupt
from flaxcnn.training.logging import Recorder, say
from flaxcnn.training.parallel import Program, Strategy
from flaxcnn.training.profile import Profile
from flaxcnn.training.report import print_evaluation, write_results
from flaxcnn.training.state import Carry, TrainState, zeros_like
from flaxcnn.training.step import make_train_step

# After so many steps in a row whose gradients are not finite, training has diverged. From its start, the loss scale
# of float16 reaches 1 after 15.
HOPELESS_STEPS = 20

Evaluations = dict[str, Evaluation]


class Interrupted(Exception):
    """The run was asked to stop by a signal, and saved; `exit_code` is the shell's for that signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def fit(config: TrainConfig, workdir: str | Path, *, console: rich.console.Console | None = None) -> Evaluation:
    """Trains what a configuration describes, continuing where the work directory left off, and evaluates it.

    Of several processes (see `flaxcnn.training.distributed`) each calls it alike, and the first prints and records.

    Args:
      config: of the run.
      workdir: folder of the run, made if missing; see `flaxcnn.training.workdir` for what it holds.
      console: where progress is printed; None for standard output.

    Returns:
      The evaluation of the final parameters on the test split.

    Raises:
      UserError: the configuration cannot work, the data is not there, memory is too small, or the folder holds
        another experiment or is in use, and nothing has been written; or training diverged, or the disk is full,
        and the checkpoints are from before.
      Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    console = console or rich.console.Console()
    if not is_primary():
        console = rich.console.Console(quiet=True)
    workdir = Path(workdir)
    keep_compiled_programs()
    with together():
        check_config(config)
        changes = workdir_lib.check_usable(workdir, config)
        train, test = load_split(config, config.data.train_split), load_split(config, config.data.test_split)
        experiment = make_experiment(config, train.class_names, train.images.shape[1:])
        strategy = Strategy(config.parallel.strategy)
        plan = Plan(config, len(train), strategy)
    say(
        console,
        f"{config.model.name} on {config.data.name}: {len(train):,} training and {len(test):,} test images, "
        f"{plan.total:,} steps of {config.batch_size}, in {workdir}",
    )
    for change in changes:
        say(console, f"changed since the checkpoint: {change}")

    train, test = to_devices(train, strategy), to_devices(test, strategy)
    optimizer = experiment.optimizer(plan.per_epoch)
    carry = strategy.create(lambda: experiment.create_carry(optimizer))
    with together(), console.status("compiling"):
        train_batch, execution = make_train_batch(experiment, optimizer, strategy, plan, carry, train)
    say(console, describe(execution))
    evaluate_state = make_evaluator(experiment, strategy)

    def evaluate(state: TrainState) -> Evaluations:
        averaged = {} if state.ema is None else {"averaged": evaluate_state(state.averaged(), test)}
        return {"test": evaluate_state(state, test)} | averaged

    with _explained(workdir), workdir_lib.opened(workdir, experiment, execution):
        with Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints:
            restored = checkpoints.restore_newest(carry, functools.partial(say, console))
            carry = carry if restored is None else restored

            def take_step(carry: Carry, step: int) -> Carry:
                return train_batch(carry, train, strategy.split(plan.indices(step)))

            schedule = experiment.schedule(plan.per_epoch)
            carry, evaluations = _train(plan, schedule, take_step, evaluate, carry, workdir, checkpoints, console)
        evaluations = evaluations or evaluate(carry.state)
        if is_primary():
            step = int(carry.state.step)
            write_results(workdir, experiment, evaluations, step=step)
            for kind, evaluation in evaluations.items():
                what = "averaged parameters " if kind == "averaged" else ""
                checkpoint, split = f"{what}after step {step:,}", config.data.test_split
                print_evaluation(console, experiment, evaluation, split=split, checkpoint=checkpoint)
    say(console, f"results in {workdir}")
    return evaluations["test"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is due when, in steps counted from 1, and which examples a step of this process sees.

    Raises:
      UserError: an epoch has no whole batch, or the devices cannot share one evenly.
    """

    config: TrainConfig
    num_examples: int
    strategy: Strategy

    def __post_init__(self):
        batch_size, devices = self.config.batch_size, self.strategy.num_devices
        if not self.per_epoch:
            raise UserError(
                f"batch_size is {batch_size}; split {self.config.data.train_split!r} of "
                f"{self.config.data.name} has only {self.num_examples} examples"
            )
        if self.total >= 2**31:
            raise UserError(f"duration is {self.config.duration!r}, {self.total:,} steps; it must be below 2**31")
        if batch_size % devices:
            less = batch_size // devices * devices
            sizes = " or ".join(str(size) for size in (less, less + devices) if size)
            raise UserError(f"batch_size is {batch_size}, which {devices} devices cannot share; write {sizes}")
        if (profile := self.config.logging.profile) and profile[1] > self.total:
            raise UserError(f"logging.profile is {profile}, and the run ends with step {self.total:,}")
        parts = self.config.parallel.micro_batches or 1
        if self.share % parts:
            raise UserError(
                f"parallel.micro_batches is {parts}, into which the {self.share} images of a device cannot be cut; "
                f"write a divisor of {self.share}"
            )

    @property
    def share(self) -> int:
        """Examples a step on each device."""
        return self.config.batch_size // self.strategy.num_devices

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
        """Returns the numbers of the examples that the step sees in this process."""
        epoch, step_of_epoch = divmod(step - 1, self.per_epoch)
        sizes = {"batch_size": self.config.batch_size, "num_examples": self.num_examples}
        return training_batch(self.config.seed, epoch, step_of_epoch, **sizes, **self.strategy.process)

    def _due(self, step: int, every: str) -> bool:
        return step % max(to_steps(every, self.per_epoch), 1) == 0 or step == self.total


def _train(
    plan: Plan,
    schedule: optax.Schedule,
    take_step: Callable[[Carry, int], Carry],
    evaluate: Callable[[TrainState], Evaluations],
    carry: Carry,
    workdir: Path,
    checkpoints: Checkpoints,
    console: rich.console.Console,
) -> tuple[Carry, Evaluations]:
    """Runs from a state to the end; nothing in a step waits for the device.

    Returns the last state, and its evaluations, or none if no step was left to take.
    """
    step, evaluations, owed = int(carry.state.step), {}, False
    if step >= plan.total:
        say(console, f"{workdir} is complete; a longer --config.duration or another --workdir trains on")
    elif step:
        say(console, f"continuing {workdir} after step {step:,} of {plan.total:,}")

    sizes = {"total": plan.total, "per_epoch": plan.per_epoch, "batch_size": plan.config.batch_size}
    with (
        Recorder(workdir if is_primary() else None, console, start=step, **sizes) as recorder,
        Interrupt() as interrupt,
        Profile(workdir, plan.config.logging.profile if is_primary() else ()) as profile,
    ):
        while step < plan.total:
            step += 1
            profile.before(step, carry)
            recorder.tick(step)
            carry, evaluations = take_step(carry, step), {}
            if profile.after(step, carry):
                say(console, f"profile of steps {plan.config.logging.profile} in {workdir / 'profile'}")
            signal = interrupt.after(step)
            owed = owed or plan.saves(step)
            if not (plan.logs(step) or plan.evaluates(step) or owed or signal):
                continue
            skipped = _check_health(carry, step)
            interval, epoch = _means(carry.interval), _means(carry.epoch)
            count = int(optax.tree.get(carry.state.opt_state, "count"))  # of the steps that were not skipped
            recorder.measure(step)
            if plan.evaluates(step):
                evaluations = evaluate(carry.state)
            with together():  # only one process writes
                if plan.logs(step):
                    recorder.interval(step, interval, float(schedule(max(count - 1, 0))))
                for kind, evaluation in evaluations.items():
                    recorder.test(kind, step, evaluation.scalars)
                if plan.ends_epoch(step):
                    recorder.epoch(step, epoch, {kind: e.accuracy for kind, e in evaluations.items()})
                recorder.flush()
            if plan.logs(step):
                carry = carry.replace(interval=plan.strategy.replicate(zeros_like(carry.interval)))
            if plan.ends_epoch(step):
                carry = carry.replace(epoch=plan.strategy.replicate(zeros_like(carry.epoch)))
            # While steps are skipped nothing new is worth saving, and what is there must not be pushed out.
            if (owed and not skipped) or signal or step == plan.total:
                checkpoints.save(step, carry, evaluations["test"].accuracy if evaluations else None)
                owed = False
            if signal and step < plan.total:
                checkpoints.finish()
                message = f"stopped and saved after step {step:,} of {plan.total:,}; the same command continues"
                raise Interrupted(message, 128 + signal)
    return carry, evaluations


def make_train_batch(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    strategy: Strategy,
    plan: Plan,
    carry: Carry,
    data: Data,
) -> tuple[Program, dict[str, Any]]:
    """Compiles the step of the loop: it gathers a batch, takes the step, and adds up the metrics.

    Returns:
      The program, `(carry, data, indices) -> carry`, which uses its carry up; and how it runs: strategy, devices,
      micro-batches, memory, seconds it took to compile.

    Raises:
      UserError: it does not fit into memory.
    """
    config, model = experiment.config, experiment.model
    if config.parallel.batch_norm == "synchronized":
        model = strategy.synchronized(model)

    def compile_step(micro_batches: int) -> Program:
        train_step = make_train_step(
            model,
            optimizer,
            experiment.preprocess,
            label_smoothing=config.label_smoothing,
            micro_batches=micro_batches,
            ema_decay=config.optimizer.ema_decay,
        )

        def train_batch(carry: Carry, data: Data, indices: jax.Array, axis_name: str | None) -> Carry:
            batch = gather(data, indices, jnp.ones(indices.shape, jnp.float32))
            state, metrics = train_step(carry.state, batch, axis_name=axis_name)
            add = functools.partial(jax.tree.map, jnp.add)
            return Carry(
                state,
                interval=add(carry.interval, metrics),
                epoch=add(carry.epoch, metrics),
                skipped_in_a_row=(carry.skipped_in_a_row + metrics["skipped"]) * metrics["skipped"],
            )

        arguments = (carry, data, strategy.split(plan.indices(1)))
        return strategy.compile(train_batch, arguments, split=(2,), donate=(0,))

    start = time.perf_counter()
    # A save keeps a second carry for a while; and all processes must come to the same number.
    limit = memory.device_bytes(strategy.device) - sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    if jax.process_count() > 1:  # in MiB, because JAX sends 32 bits
        limit = int(multihost_utils.process_allgather(np.array(limit >> 20, np.int32)).min()) << 20
    wanted = config.parallel.micro_batches
    program, micro_batches = memory.find_program(compile_step, wanted=wanted, share=plan.share, limit=limit)
    return program, {
        "strategy": strategy.name,
        "devices": strategy.num_devices,
        "device_kind": strategy.device.device_kind,
        "processes": jax.process_count(),
        "images_per_device": plan.share,
        "micro_batches": micro_batches,
        "batch_norm": config.parallel.batch_norm,
        "step_bytes": memory.program_bytes(program),
        "device_bytes": limit,
        "compile_seconds": time.perf_counter() - start,
    }


def describe(execution: Mapping[str, Any]) -> str:
    """Returns a line on how a step runs."""
    devices, parts = execution["devices"], execution["micro_batches"]
    each = f", {execution['images_per_device']} images each" if devices > 1 else ""
    each += f" in {parts} micro-batches" if parts > 1 else ""
    processes = f" of {execution['processes']} processes" if execution["processes"] > 1 else ""
    needed, there_is = memory.as_text(execution["step_bytes"]), memory.as_text(execution["device_bytes"])
    return (
        f"{execution['strategy']} on {devices} {execution['device_kind']} device{'s'[: devices > 1]}{processes}"
        f"{each}; compiled in {execution['compile_seconds']:.1f} s; a step takes {needed} of a device's {there_is}"
    )


@contextlib.contextmanager
def _explained(workdir: Path) -> Iterator[None]:
    """Says in a line what the machine had against a run that was under way."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"work directory {workdir} cannot be written to: {error.strerror or error}; the same command continues "
            f"from the newest checkpoint"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the device ran out of memory; --config.parallel.micro_batches=None takes a step in parts that fit, "
            "and a smaller --config.evaluation.batch_size changes no accuracy"
        ) from error


def load_split(config: TrainConfig, split: str) -> datasets.ImageDataset:
    """Reads a split of the configured data set, if it takes at most a quarter of a device's memory."""
    return datasets.load(
        config.data.name,
        split,
        data_dir=config.data.data_dir,
        image_size=config.data.image_size,
        limit_bytes=memory.device_bytes(jax.local_devices()[0]) // 4,
    )


def to_devices(dataset: datasets.ImageDataset, strategy: Strategy) -> Data:
    """Puts a split on every device as it is: image uint8, label int32."""
    return strategy.replicate({"image": dataset.images, "label": dataset.labels})


def _means(sums: Mapping[str, jax.Array]) -> dict[str, float]:
    """Fetches sums of metrics and returns their means, which of no examples are not numbers."""
    sums = jax.device_get(dict(sums))
    count = int(sums["count"])
    means = {name: float(sums[key]) / count if count else math.nan for name, key in _MEANS.items()}
    return means | {"skipped": int(sums["skipped"])}


_MEANS = {"loss": "loss", "accuracy": "correct"}


@jax.jit
def _health(carry: Carry) -> tuple[jax.Array, jax.Array]:
    leaves = jax.tree.leaves((carry.state.params, carry.state.ema, carry.epoch["loss"]))
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
    return finite, carry.skipped_in_a_row


def _check_health(carry: Carry, step: int) -> int:
    """Returns how many steps in a row have been skipped.

    Raises:
      UserError: training has diverged; it comes before that is evaluated or saved.
    """
    finite, skipped = jax.device_get(_health(carry))
    if finite and skipped < HOPELESS_STEPS:
        return int(skipped)
    what = "the loss or a parameter is" if not finite else f"the gradients of the last {skipped} steps were"
    raise UserError(
        f"training diverged by step {step:,}: {what} not finite; lower optimizer.learning_rate or lengthen "
        f"schedule.warmup, and start in a new --workdir"
    )
