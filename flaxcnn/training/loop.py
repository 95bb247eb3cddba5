"""The loop: a configuration and a work directory in, a trained network and its numbers out."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from flaxcnn.config import TrainConfig
from flaxcnn.data.delivery import Delivery
from flaxcnn.data.sources import refuse_data_dir
from flaxcnn.errors import UserError
from flaxcnn.paths import local_path
from flaxcnn.training import workdir as workdir_lib
from flaxcnn.training.checkpoint import Checkpoints
from flaxcnn.training.compilation import jit_in_haste, keep_compiled_programs
from flaxcnn.training.distributed import agree, is_primary, together
from flaxcnn.training.evaluation import Evaluation, evaluation_batch_size, make_evaluator
from flaxcnn.training.experiment import Experiment, check_config, make_experiment
from flaxcnn.training.feed import Batches, Split, memory_for_data, open_delivery, open_splits
from flaxcnn.training.interrupt import Interrupt
from flaxcnn.training.logging import Recorder, say
from flaxcnn.training.optimizer import learning_rate, observe
from flaxcnn.training.parallel import Strategy
from flaxcnn.training.plan import Plan
from flaxcnn.training.profile import Profile
from flaxcnn.training.program import describe, make_take_steps, steps_at_once
from flaxcnn.training.report import draw_results, print_evaluation, write_results
from flaxcnn.training.state import Carry, TrainState, zeros_like

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
    start = time.perf_counter()
    with together():
        workdir = local_path(workdir)
        keep_compiled_programs()
        check_config(config)
        refuse_data_dir(config.data.name, config.data.data_dir, "--config.data.data_dir")
        train = open_delivery(config, config.data.train_split, training=True)
        test = open_delivery(config, config.data.test_split, training=False)
        changes = workdir_lib.check_usable(workdir, config, _description(train, test))
        experiment = make_experiment(config, train.source.class_names, test.image_shape)
        strategy = Strategy(config.parallel.strategy)
        plan = Plan(config, len(train.source), strategy)
    say(
        console,
        f"{config.model.name} on {config.data.name}: {len(train.source):,} training and {len(test.source):,} test "
        f"images, {plan.total:,} steps of {config.batch_size}, in {workdir}",
    )
    for note in train.source.notes:
        say(console, note)
    for change in changes:
        say(console, f"changed since the checkpoint: {change}")

    agree("the pictures", train.source.fingerprint + test.source.fingerprint)
    limit = memory_for_data()
    sizes = {
        "train": config.batch_size,
        "test": evaluation_batch_size(config, len(test.source), strategy),
    }
    with contextlib.ExitStack() as stack:
        with together():
            deliveries = {"train": train, "test": test}
            splits = stack.enter_context(open_splits(config, strategy, deliveries, sizes, limit))
        run = _Run(experiment, plan, splits, _description(train, test), workdir, console, start)
        evaluations = _fit(run)
    say(console, f"results in {workdir}")
    return evaluations["test"]


def _description(train: Delivery, test: Delivery) -> dict[str, Any]:
    """Returns what a work directory keeps of the data."""
    return {
        "class_names": train.source.class_names,
        "image_shape": test.image_shape,
        "fingerprint": train.source.fingerprint,
    }


@dataclasses.dataclass(frozen=True)
class _Run:
    """What there is before anything is compiled; `start` is when that began, by `time.perf_counter`."""

    experiment: Experiment
    plan: Plan
    splits: Mapping[str, Split]
    data: Mapping[str, Any]
    workdir: Path
    console: rich.console.Console
    start: float


def _fit(run: _Run) -> Evaluations:
    """Compiles, trains, evaluates and writes the results."""
    experiment, plan, workdir, console = run.experiment, run.plan, run.workdir, run.console
    config, strategy = experiment.config, plan.strategy
    train, test = run.splits["train"], run.splits["test"]
    optimizer = experiment.optimizer(plan.per_epoch)
    with together(), console.status("compiling"), concurrent.futures.ThreadPoolExecutor(1) as pool:
        shapes, create_carry = strategy.creation(lambda: experiment.create_carry(optimizer))
        # XLA compiles both at a time.
        creation = pool.submit(create_carry)
        at_once = steps_at_once(experiment, plan, train)
        take_steps, execution = make_take_steps(experiment, optimizer, plan, shapes, train, at_once)
        carry = creation.result()
    say(console, describe(execution))
    evaluate_state = make_evaluator(experiment, strategy)

    def evaluate(state: TrainState) -> Evaluations:
        averaged = {} if state.ema is None else {"averaged": evaluate_state(state.averaged(), test)}
        return {"test": evaluate_state(state, test)} | averaged

    with _explained(workdir), workdir_lib.opened(workdir, config, run.data, execution):
        with Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints:
            restored = checkpoints.restore_newest(carry, functools.partial(say, console))
            carry = carry if restored is None else restored
            if int(carry.state.step) < plan.total and is_primary():
                workdir_lib.record(workdir, config, run.data, execution)
            requests = plan.requests(int(carry.state.step) + 1, at_once)
            with contextlib.closing(train.batches(requests)) as batches:

                def take_next(carry: Carry, step: int) -> tuple[Carry, int]:
                    given, count = batches.next(busy=carry.state.step), plan.count_to_next(step, at_once)
                    return take_steps(carry, train.data, given, count), step + count

                carry, evaluations = _train(run, take_next, batches, evaluate, carry, checkpoints)
        evaluations = evaluations or evaluate(carry.state)
        if is_primary():
            step = int(carry.state.step)
            write_results(workdir, experiment, evaluations, step=step)
            for kind, evaluation in evaluations.items():
                what = "averaged parameters " if kind == "averaged" else ""
                checkpoint, split = f"{what}after step {step:,}", config.data.test_split
                print_evaluation(console, experiment, evaluation, split=split, checkpoint=checkpoint)
            draw_results(console, workdir, experiment, evaluations["test"])
    return evaluations


def _train(
    run: _Run,
    take_next: Callable[[Carry, int], tuple[Carry, int]],
    batches: Batches,
    evaluate: Callable[[TrainState], Evaluations],
    carry: Carry,
    checkpoints: Checkpoints,
) -> tuple[Carry, Evaluations]:
    """Runs from a state to the end; nothing in a step waits for the device.

    Returns the last state, and its evaluations, or none if no step was left to take.
    """
    experiment, plan, workdir, console = run.experiment, run.plan, run.workdir, run.console
    step, evaluations, owed = int(carry.state.step), {}, False
    schedule, strategy = experiment.schedule(plan.per_epoch), plan.strategy
    if step >= plan.total:
        say(
            console,
            f"{workdir} is complete and keeps what it was trained with; a longer --config.duration or another "
            f"--workdir trains on",
        )
    elif step:
        say(console, f"continuing {workdir} after step {step:,} of {plan.total:,}")

    first = step + 1
    sizes = {"total": plan.total, "per_epoch": plan.per_epoch, "batch_size": plan.config.batch_size}
    with (
        Recorder(workdir if is_primary() else None, console, start=step, **sizes) as recorder,
        Interrupt() as interrupt,
        Profile(workdir, plan.config.logging.profile if is_primary() else ()) as profile,
    ):
        while step < plan.total:
            start = step + 1
            profile.before(start, carry)
            recorder.tick(start)
            (carry, step), evaluations = take_next(carry, step), {}
            if start == first:
                jax.block_until_ready(carry)
                say(console, f"first step done {time.perf_counter() - run.start:.1f} s after the start")
            if profile.after(step, carry):
                say(console, f"profile of steps {plan.config.logging.profile} in {workdir / 'profile'}")
            signal = interrupt.after(range(start, step + 1))
            owed = owed or plan.saves(step)
            if not (plan.logs(step) or plan.evaluates(step) or owed or signal):
                continue
            batches.check()
            skipped = _check_health(carry, step)
            interval, epoch = _means(carry.interval), _means(carry.epoch)
            del interval["count"]
            seen = (plan.steps_of_epoch(step) - epoch["skipped"]) * plan.config.batch_size
            epoch["left_out"] = seen - epoch.pop("count")
            rate = learning_rate(schedule, carry.state.opt_state)
            recorder.measure(step, waited=batches.idle_seconds)
            if plan.evaluates(step):
                evaluations = evaluate(carry.state)
                if plan.observes(step):
                    carry = _observed(experiment, strategy, carry, evaluations["test"].accuracy)
            with together():  # only one process writes
                if plan.logs(step):
                    recorder.interval(step, interval, rate)
                for kind, evaluation in evaluations.items():
                    recorder.test(kind, step, evaluation.scalars)
                if plan.ends_epoch(step):
                    recorder.epoch(step, epoch, {kind: e.accuracy for kind, e in evaluations.items()})
                recorder.flush()
            if plan.logs(step):
                carry = carry.replace(interval=strategy.replicate(zeros_like(carry.interval)))
            if plan.ends_epoch(step):
                carry = carry.replace(epoch=strategy.replicate(zeros_like(carry.epoch)))
            # While steps are skipped nothing new is worth saving, and what is there must not be pushed out.
            if (owed and not skipped) or signal or step == plan.total:
                checkpoints.save(step, carry, evaluations["test"].accuracy if evaluations else None)
                owed = False
            if signal and step < plan.total:
                checkpoints.finish()
                message = f"stopped and saved after step {step:,} of {plan.total:,}; the same command continues"
                raise Interrupted(message, 128 + signal)
    return carry, evaluations


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


def _observed(experiment: Experiment, strategy: Strategy, carry: Carry, accuracy: float) -> Carry:
    """Returns the carry after an evaluation, which the schedule "plateau" takes note of."""
    before = carry.state.opt_state
    after = observe(experiment.config.schedule, before, accuracy)
    if after is before:
        return carry
    *others, plateau = cast(tuple, after)
    opt_state = (*others, strategy.replicate(jax.tree.map(np.asarray, plateau)))
    return carry.replace(state=carry.state.replace(opt_state=opt_state))


def _means(sums: Mapping[str, jax.Array]) -> dict[str, float]:
    """Fetches sums of metrics and returns their means, which of no examples are not numbers, and the counts."""
    sums = jax.device_get(dict(sums))
    count = int(sums["count"])
    means = {name: float(sums[key]) / count if count else math.nan for name, key in _MEANS.items()}
    return means | {"skipped": int(sums["skipped"]), "count": count}


_MEANS = {"loss": "loss", "accuracy": "correct"}


@jit_in_haste
def _health(carry: Carry) -> tuple[jax.Array, jax.Array]:
    leaves = jax.tree.leaves((carry.state.params, carry.state.ema, carry.epoch["loss"]))
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
    return finite, carry.skipped_in_a_row


def _check_health(carry: Carry, step: int) -> int:
    """Returns how many steps in a row have been skipped.

    Raises:
      UserError: training has diverged; it comes before that is evaluated or saved.
    """
    health: Any = jax.device_get(_health(carry))
    finite, skipped = health
    if finite and skipped < HOPELESS_STEPS:
        return int(skipped)
    what = "the loss or a parameter is" if not finite else f"the gradients of the last {skipped} steps were"
    raise UserError(
        f"training diverged by step {step:,}: {what} not finite; lower optimizer.learning_rate or lengthen "
        f"schedule.warmup, and start in a new --workdir"
    )
