"""The training loop: `fit` trains the network of a configuration in a work directory, and evaluates it."""

import concurrent.futures
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import rich.console

from flaxcnn.config import TrainConfig
from flaxcnn.data.loading.loader import Loader, open_loaders
from flaxcnn.errors import UserError
from flaxcnn.parallel.compilation import keep_compiled_programs
from flaxcnn.parallel.memory import memory_for_data
from flaxcnn.parallel.processes import is_primary, raise_on_all_processes
from flaxcnn.runs import workdir as workdir_lib
from flaxcnn.runs.checkpoint import Checkpoints
from flaxcnn.runs.interrupt import Interrupt
from flaxcnn.runs.profiler import Profiler
from flaxcnn.runs.recorder import Recorder, say
from flaxcnn.training.compiled_steps import CompiledSteps, compile_steps, describe, steps_per_call
from flaxcnn.training.evaluation import Evaluation, make_evaluator
from flaxcnn.training.milestones import Evaluations, Milestones
from flaxcnn.training.report import report_results
from flaxcnn.training.setup import Run, setup
from flaxcnn.training.state import LoopState, TrainState


class Interrupted(Exception):
    """The run stopped because of a signal, after saving its state.

    Attributes:
      exit_code: exit status that a shell reports for the signal.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def fit(config: TrainConfig, workdir: str | Path, *, console: rich.console.Console | None = None) -> Evaluation:
    """Trains a network, continuing from the newest checkpoint in the work directory, and evaluates it.

    First it checks the configuration, opens the data, builds the network, compiles the training step and restores
    the newest checkpoint. Then it takes the remaining steps, and logs, evaluates and saves checkpoints between
    them. Finally it evaluates the network and writes the results. With several processes (see
    `flaxcnn.parallel.processes`), each process calls `fit` with equal arguments; the first process prints and
    writes.

    Args:
      config: the configuration.
      workdir: folder of the run, created if missing; `flaxcnn.runs.workdir` describes its files.
      console: console to print progress to; None prints to standard output.

    Returns:
      The evaluation of the final parameters on the test split.

    Raises:
      UserError: before anything is written: the configuration is invalid, the data is missing, memory is too small,
        or the folder holds another experiment or is in use. Later: training diverged, or the disk is full; existing
        checkpoints are kept.
      Interrupted: the process received SIGINT or SIGTERM; the state is saved.
    """
    start = time.perf_counter()
    console = console or rich.console.Console()
    if not is_primary():
        console = rich.console.Console(quiet=True)
    keep_compiled_programs()

    run = setup(config, workdir)
    _announce(run, console)
    with contextlib.ExitStack() as stack:
        with raise_on_all_processes():
            loading = open_loaders(config.data, run.strategy, run.datasets, run.batch_sizes, memory_for_data())
            loaders = stack.enter_context(loading)
        steps, loop_state = _compile(run, loaders["train"], console)
        evaluate = _make_evaluate(run, loaders["test"])

        stack.enter_context(_failures_in_one_line(run.workdir))
        record = (run.workdir, config, run.data_record, steps.execution)
        stack.enter_context(workdir_lib.opened(*record))
        checkpoints = stack.enter_context(Checkpoints(run.workdir, keep=config.checkpoint.keep))
        loop_state = checkpoints.restore_newest(loop_state, functools.partial(say, console)) or loop_state
        if int(loop_state.state.step) < run.plan.total and is_primary():
            workdir_lib.record(*record)

        loop_state, evaluations = train(
            run, steps, loop_state, loaders["train"], evaluate, checkpoints, console, start
        )
        evaluations = evaluations or evaluate(loop_state.state)
        if is_primary():
            report_results(console, run.workdir, run.experiment, evaluations, step=int(loop_state.state.step))
    say(console, f"results in {run.workdir}")
    return evaluations["test"]


def _announce(run: Run, console: rich.console.Console) -> None:
    train, test = run.datasets["train"], run.datasets["test"]
    say(
        console,
        f"{run.config.model.name} on {run.config.data.name}: {len(train):,} training and {len(test):,} test "
        f"images, {run.plan.total:,} steps of {run.config.batch_size}, in {run.workdir}",
    )
    for note in train.source.notes:
        say(console, note)
    for change in run.changes:
        say(console, f"changed since the checkpoint: {change}")


def _compile(run: Run, loader: Loader, console: rich.console.Console) -> tuple[CompiledSteps, LoopState]:
    """Compiles the training steps and, concurrently, creates the initial loop state."""
    optimizer = run.experiment.optimizer(run.plan.per_epoch)
    with (
        raise_on_all_processes(),
        console.status("compiling"),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        abstract, create = run.strategy.creation(lambda: run.experiment.create_loop_state(optimizer))
        creation = pool.submit(create)
        per_call = steps_per_call(run.experiment, run.plan, loader)
        steps = compile_steps(run.experiment, run.plan, abstract, loader, per_call)
        loop_state = creation.result()
    say(console, describe(steps.execution))
    return steps, loop_state


def _make_evaluate(run: Run, loader: Loader) -> Callable[[TrainState], Evaluations]:
    evaluator = make_evaluator(run.experiment, run.strategy, loader)

    def evaluate(state: TrainState) -> Evaluations:
        averaged = {} if state.ema is None else {"averaged": evaluator(state.averaged())}
        return {"test": evaluator(state)} | averaged

    return evaluate


def train(
    run: Run,
    steps: CompiledSteps,
    loop_state: LoopState,
    loader: Loader,
    evaluate: Callable[[TrainState], Evaluations],
    checkpoints: Checkpoints,
    console: rich.console.Console,
    start: float,
) -> tuple[LoopState, Evaluations]:
    """Takes the remaining steps of a run. Between milestones, the host does not wait for the devices.

    Args:
      run: configuration, plan and work directory.
      steps: compiled training steps.
      loop_state: loop state to start from.
      loader: loader of the training split.
      evaluate: function from a train state to its evaluations.
      checkpoints: checkpoints of the run.
      console: console to print progress to.
      start: `time.perf_counter()` at the start of the run.

    Returns:
      The final loop state, and its evaluations if the last step was evaluated, otherwise an empty dict.

    Raises:
      UserError: see `Milestones.reach`.
      Interrupted: the process received SIGINT or SIGTERM; the state is saved.
    """
    plan, first = run.plan, int(loop_state.state.step) + 1
    if first > plan.total:
        say(
            console,
            f"{run.workdir} is complete and keeps what it was trained with; a longer --config.duration or another "
            f"--workdir trains on",
        )
        return loop_state, {}
    if first > 1:
        say(console, f"continuing {run.workdir} after step {first - 1:,} of {plan.total:,}")

    sizes = {"total": plan.total, "per_epoch": plan.per_epoch, "batch_size": run.config.batch_size}
    with (
        contextlib.closing(loader.batches(plan.batch_indices(first, steps.steps_per_call))) as batches,
        Recorder(run.workdir if is_primary() else None, console, start=first - 1, **sizes) as recorder,
        Interrupt() as interrupt,
        Profiler(run.workdir, run.config.logging.profile if is_primary() else ()) as profiler,
    ):
        milestones = Milestones(run, evaluate, batches, recorder, checkpoints)
        step = first - 1
        while step < plan.total:
            batch = batches.next(busy=loop_state.state.step)
            profiler.before(step + 1, loop_state)
            recorder.tick(step + 1)
            loop_state = steps(loop_state, batch, step=step)
            taken = range(step + 1, step + batch.count + 1)
            step += batch.count
            if taken.start == first:
                jax.block_until_ready(loop_state)
                say(console, f"first step done {time.perf_counter() - start:.1f} s after the start")
            if profiler.after(step, loop_state):
                say(console, f"profile of steps {run.config.logging.profile} in {run.workdir / 'profile'}")
            signal = interrupt.after(taken)
            if milestones.are_due(step) or signal:
                is_last = bool(signal) or step == plan.total
                loop_state = milestones.reach(step, loop_state, is_last=is_last)
            if signal and step < plan.total:
                checkpoints.finish()
                message = f"stopped and saved after step {step:,} of {plan.total:,}; the same command continues"
                raise Interrupted(message, 128 + signal)
    return loop_state, milestones.evaluations


@contextlib.contextmanager
def _failures_in_one_line(workdir: Path) -> Iterator[None]:
    """Context manager that re-raises errors from a full disk or from full device memory as `UserError`."""
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
            "the device ran out of memory; --config.parallel.micro_batches=None splits a step into parts that fit, "
            "and a smaller --config.evaluation.batch_size changes no accuracy"
        ) from error
