"""The compiled training steps: each call assembles batches on the devices, takes steps, and sums the metrics."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flaxcnn.data.loading.batch import Arrays, DeviceBatch
from flaxcnn.data.loading.loader import Loader
from flaxcnn.models import cost
from flaxcnn.ops import onednn
from flaxcnn.parallel import memory
from flaxcnn.parallel.processes import minimum_across_processes
from flaxcnn.parallel.program import Program
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.plan import Plan
from flaxcnn.training.state import LoopState
from flaxcnn.training.train_step import make_train_step

Array = jax.Array

# Maximum numbers of steps and of floating-point operations in one call. Such a call takes some hundredths of a
# second on an accelerator, so the half millisecond that the host needs per call matters little.
MAX_STEPS, MAX_OPERATIONS = 32, 2e12


def steps_per_call(experiment: Experiment, plan: Plan, loader: Loader) -> int:
    """Returns the maximum number of steps that the devices take in one call.

    It is above 1 only if steps are short and the dataset is resident on an accelerator. (On CPUs, XLA runs the
    convolutions of a loop on a single thread.) It depends on shapes only, so it is equal in all processes.
    """
    if plan.strategy.device.platform == "cpu" or not loader.resident:
        return 1
    # The backward pass has twice as many operations as the forward pass. A multiply-add is two operations.
    step = 6 * cost.measure(experiment.model, experiment.input_shape).macs * plan.per_device_batch
    return max(1, min(MAX_STEPS, int(MAX_OPERATIONS // max(step, 1))))


@dataclasses.dataclass(frozen=True)
class CompiledSteps:
    """Compiled training steps: a callable `steps(loop_state, batch) -> loop_state` that donates the loop state.

    Attributes:
      program: the compiled program.
      frozen_program: the program for the first `frozen_steps` steps, in which some layers do not train; or None.
      frozen_steps: number of these steps.
      resident: arrays of the training split that are stored on every device.
      strategy: placement of arrays and programs on the devices.
      steps_per_call: maximum number of steps in one call.
      execution: description for the record of the run: strategy, number and kind of devices, micro-batches, memory
        in bytes, compile time in seconds.
    """

    program: Program
    frozen_program: Program | None
    frozen_steps: int
    resident: Arrays
    strategy: Strategy
    steps_per_call: int
    execution: Mapping[str, Any]

    def __call__(self, loop_state: LoopState, batch: DeviceBatch, *, step: int) -> LoopState:
        """Takes the `batch.count` steps of a batch. Returns before the devices are done.

        Args:
          loop_state: loop state after `step` steps.
          batch: the batch.
          step: number of steps taken before.
        """
        program = (self.frozen_program if step < self.frozen_steps else None) or self.program
        if self.steps_per_call == 1:
            return program(loop_state, self.resident, batch.inputs)
        count = self.strategy.replicate(np.asarray(batch.count, np.int32))
        return program(loop_state, self.resident, batch.inputs, count)


def compile_steps(
    experiment: Experiment,
    plan: Plan,
    loop_state: LoopState,
    loader: Loader,
    per_call: int,
) -> CompiledSteps:
    """Compiles the training steps for all devices.

    If a call takes several steps, they run as one `fori_loop` whose trip count is an argument. The same program is
    used for any number of steps, so results do not depend, bitwise, on where a run was interrupted.

    Args:
      experiment: configuration, network, preprocessing and augmentation.
      plan: batch sizes and devices of the run.
      loop_state: loop state, or its shapes, dtypes and shardings.
      loader: loader of the training split.
      per_call: maximum number of steps in one call, see `steps_per_call`.

    Returns:
      The compiled steps. If the configuration does not set `parallel.micro_batches`, they use the smallest number
      of micro-batches with which a step fits into memory.

    Raises:
      UserError: the step does not fit into memory.
    """
    config, model, strategy = experiment.config, experiment.model, plan.strategy
    if config.parallel.batch_norm == "synchronized":
        model = strategy.synchronized(model)

    def compile_with(micro_batches: int, *, is_unfrozen: bool = True) -> Program:
        train_step = make_train_step(
            model,
            experiment.optimizer(plan.per_epoch, is_unfrozen=is_unfrozen),
            experiment.preprocess,
            mix=experiment.mix,
            label_smoothing=config.label_smoothing,
            micro_batches=micro_batches,
            ema_decay=config.optimizer.ema_decay,
            frozen=() if plan.frozen_steps and is_unfrozen else config.model.frozen,
            frozen_batch_stats=config.model.frozen_batch_stats,
        )

        def train_batch(
            loop_state: LoopState, resident: Arrays, inputs: Arrays, axis_name: str | None
        ) -> LoopState:
            state, metrics = train_step(loop_state.state, loader.assemble(resident, inputs), axis_name=axis_name)
            return loop_state.advance(state, metrics)

        def train_batches(
            loop_state: LoopState, resident: Arrays, inputs: Arrays, count: Array, axis_name: str | None
        ) -> LoopState:
            def train_next(number: Array, loop_state: LoopState) -> LoopState:
                own = jax.tree.map(lambda rows: rows[:, number], inputs)
                return train_batch(loop_state, resident, own, axis_name)

            return jax.lax.fori_loop(0, count, train_next, loop_state)

        function = train_batch if per_call == 1 else train_batches
        return strategy.compile(function, arguments, sharded=(2,), donate=(0,))

    rows = config.batch_size // jax.process_count()
    arguments: tuple = (loop_state, loader.resident, loader.masked_inputs(rows))
    if per_call > 1:
        one = strategy.replicate(np.asarray(1, np.int32))
        arguments = (loop_state, loader.resident, loader.masked_inputs(rows, per_call), one)
    start = time.perf_counter()
    # While a checkpoint is being saved, memory holds a second copy of the loop state.
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(loop_state))
    limit = minimum_across_processes(memory.device_bytes(strategy.device) - state_bytes)
    program, micro_batches = memory.find_program(
        compile_with,
        micro_batches=config.parallel.micro_batches,
        per_device_batch=plan.per_device_batch,
        limit=limit,
        multiple=1 if experiment.mix is None else 2,
    )
    frozen_program = compile_with(micro_batches, is_unfrozen=False) if plan.frozen_steps else None
    on_cpu, is_partitioned = strategy.device.platform == "cpu", strategy.name == "jit" and strategy.num_devices > 1
    execution = {
        "strategy": strategy.name,
        "devices": strategy.num_devices,
        "device_kind": strategy.device.device_kind,
        "convolutions": onednn.describe() if on_cpu and not is_partitioned else None,
        "processes": jax.process_count(),
        "images_per_device": plan.per_device_batch,
        "micro_batches": micro_batches,
        "steps_at_once": per_call,
        "batch_norm": config.parallel.batch_norm,
        "step_bytes": memory.program_bytes(program),
        "device_bytes": limit,
        "compile_seconds": time.perf_counter() - start,
    }
    return CompiledSteps(program, frozen_program, plan.frozen_steps, loader.resident, strategy, per_call, execution)


def describe(execution: Mapping[str, Any]) -> str:
    """Formats `CompiledSteps.execution` as one line for the console."""
    devices, micro_batches = execution["devices"], execution["micro_batches"]
    each = f", {execution['images_per_device']} images each" if devices > 1 else ""
    each += f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
    each += f", {execution['steps_at_once']} steps at once" if execution["steps_at_once"] > 1 else ""
    engine = f"; convolutions by {execution['convolutions']}" if execution["convolutions"] else ""
    processes = f" of {execution['processes']} processes" if execution["processes"] > 1 else ""
    needed, there_is = memory.as_text(execution["step_bytes"]), memory.as_text(execution["device_bytes"])
    return (
        f"{execution['strategy']} on {devices} {execution['device_kind']} device{'s'[: devices > 1]}{processes}"
        f"{each}{engine}; compiled in {execution['compile_seconds']:.1f} s; "
        f"a step takes {needed} of a device's {there_is}"
    )
