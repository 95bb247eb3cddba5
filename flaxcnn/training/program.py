"""The program that the loop runs: it assembles batches, takes steps, and adds up their metrics."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcnn.models import cost
from flaxcnn.ops import onednn
from flaxcnn.training import memory
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.feed import Data, Split, assemble
from flaxcnn.training.parallel import Program
from flaxcnn.training.plan import Plan
from flaxcnn.training.state import Carry
from flaxcnn.training.step import make_train_step

Array = jax.Array


# The most steps that the device is asked for at once, and the most floating-point operations: some hundredths of a
# second on an accelerator, beside which the host's part, half a thousandth of a second, is small.
MOST_STEPS, WORK = 32, 2e12


def steps_at_once(experiment: Experiment, plan: Plan, train: Split) -> int:
    """Returns how many steps the device is asked for at once, at the most.

    More than one only where a step is short, the data lie on the device, and that is no CPU, on which XLA runs the
    convolutions of a loop on one core. It follows from the shapes alone, so that all processes come to the same.
    """
    if plan.strategy.device.platform == "cpu" or not train.data:
        return 1
    # The backward pass takes twice as much as the forward pass; a multiply-add is two operations.
    step = 6 * cost.measure(experiment.model, experiment.input_shape).macs * plan.share
    return max(1, min(MOST_STEPS, int(WORK // max(step, 1))))


def make_take_steps(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    carry: Carry,
    train: Split,
    at_once: int,
) -> tuple[Callable[[Carry, Data, Data, int], Carry], dict[str, Any]]:
    """Compiles the steps of the loop: each assembles a batch, takes a step, and adds up the metrics.

    Several at once are a loop of as many turns as there are to take, with one program for any number of them: so a
    run has the same numbers, bit for bit, wherever it was stopped and went on.

    Args:
      experiment: whose network is trained.
      optimizer: of the carry.
      plan: of the run.
      carry: a `Carry`, or its shapes.
      train: the split.
      at_once: the most steps that are taken at once.

    Returns:
      `take_steps(carry, data, given, count) -> carry`, which uses its carry up (see `feed.assemble` and
      `Plan.requests`); and how it runs: strategy, devices, micro-batches, memory, seconds it took to compile.

    Raises:
      UserError: it does not fit into memory.
    """
    config, model, strategy = experiment.config, experiment.model, plan.strategy
    if config.parallel.batch_norm == "synchronized":
        model = strategy.synchronized(model)

    def compile_step(micro_batches: int) -> Program:
        train_step = make_train_step(
            model,
            optimizer,
            experiment.preprocess,
            mix=experiment.mix,
            label_smoothing=config.label_smoothing,
            micro_batches=micro_batches,
            ema_decay=config.optimizer.ema_decay,
        )

        def train_batch(carry: Carry, data: Data, given: Data, axis_name: str | None) -> Carry:
            state, metrics = train_step(carry.state, assemble(data, given), axis_name=axis_name)
            add = functools.partial(jax.tree.map, jnp.add)
            return Carry(
                state,
                interval=add(carry.interval, metrics),
                epoch=add(carry.epoch, metrics),
                skipped_in_a_row=(carry.skipped_in_a_row + metrics["skipped"]) * metrics["skipped"],
            )

        def train_batches(carry: Carry, data: Data, given: Data, count: Array, axis_name: str | None) -> Carry:
            def train_next(number: Array, carry: Carry) -> Carry:
                return train_batch(carry, data, jax.tree.map(lambda rows: rows[:, number], given), axis_name)

            return jax.lax.fori_loop(0, count, train_next, carry)

        function = train_batch if at_once == 1 else train_batches
        return strategy.compile(function, arguments, split=(2,), donate=(0,))

    rows = config.batch_size // jax.process_count()
    if at_once == 1:
        arguments = (carry, train.data, train.blank(rows))
    else:
        arguments = (carry, train.data, train.blank(rows, at_once), strategy.replicate(np.asarray(1, np.int32)))
    start = time.perf_counter()
    # A save keeps a second carry for a while.
    limit = memory.agreed(
        memory.device_bytes(strategy.device)
        - sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
    )
    wanted, pairs = config.parallel.micro_batches, experiment.mix is not None
    program, micro_batches = memory.find_program(
        compile_step, wanted=wanted, share=plan.share, limit=limit, multiple=2 if pairs else 1
    )

    def take_steps(carry: Carry, data: Data, given: Data, count: int) -> Carry:
        if at_once == 1:
            return program(carry, data, given)
        return program(carry, data, given, strategy.replicate(np.asarray(count, np.int32)))

    on_cpu, is_partitioned = strategy.device.platform == "cpu", strategy.name == "jit" and strategy.num_devices > 1
    return take_steps, {
        "strategy": strategy.name,
        "devices": strategy.num_devices,
        "device_kind": strategy.device.device_kind,
        "convolutions": onednn.describe() if on_cpu and not is_partitioned else None,
        "processes": jax.process_count(),
        "images_per_device": plan.share,
        "micro_batches": micro_batches,
        "steps_at_once": at_once,
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
    each += f", {execution['steps_at_once']} steps at once" if execution["steps_at_once"] > 1 else ""
    engine = f"; convolutions by {execution['convolutions']}" if execution["convolutions"] else ""
    processes = f" of {execution['processes']} processes" if execution["processes"] > 1 else ""
    needed, there_is = memory.as_text(execution["step_bytes"]), memory.as_text(execution["device_bytes"])
    return (
        f"{execution['strategy']} on {devices} {execution['device_kind']} device{'s'[: devices > 1]}{processes}"
        f"{each}{engine}; compiled in {execution['compile_seconds']:.1f} s; "
        f"a step takes {needed} of a device's {there_is}"
    )
