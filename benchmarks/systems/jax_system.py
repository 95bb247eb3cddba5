"""What the systems on JAX have in common: a jitted function, called again and again, and a textbook's step."""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.systems.serve import Task

WEIGHT_DECAY, MOMENTUM, LEARNING_RATE = 1e-4, 0.9, 1e-3  # of every system
# By what is in the name and the opcode of an operation of XLA.
KINDS = {"convolution": "conv|ffi_call", "product": r"dot|gemm", "sum": r"ynn_fusion|reduce"}


def random_batch(task: Task, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (B, H, W, C), uint8 or normal floats, and labels (B,) int32."""
    rng = np.random.default_rng(0)
    shape = (task.batch, *task.image_shape)
    images = rng.integers(0, 256, shape, np.uint8) if dtype == "uint8" else rng.standard_normal(shape, np.float32)
    return images, rng.integers(0, task.num_classes, task.batch, np.int32)


def count(tree: Any) -> int:
    """Returns the number of elements in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def textbook_step(forward: Callable, params: Any, others: Any) -> tuple[Callable, Any]:
    """Returns a training step and its first state: one jitted function, state donated, SGD of optax.

    Args:
      forward: `forward(params, others, images)`, to logits and the next `others`.
      params: what is trained.
      others: what changes from step to step by itself.
    """
    optimizer = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))

    def step(state, images, labels):
        params, others, momentum = state

        def loss(params):
            logits, updated = forward(params, others, images)
            logits = logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(gradients, momentum, params)
        return (optax.apply_updates(params, updates), others, momentum), value

    return jax.jit(step, donate_argnums=0), (params, others, optimizer.init(params))


def shared_time(kinds: Sequence[str], spans: Sequence[tuple[str, float, float]]) -> dict[str, float]:
    """Returns the time that each kind has of spans (kind, start, end); those at the same time share it equally."""
    changes = [(start, kind, 1) for kind, start, _ in spans] + [(end, kind, -1) for kind, _, end in spans]
    found, running, before = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0), 0.0
    for now, kind, change in sorted(changes):
        for each, count in running.items():
            found[each] += (now - before) * count / max(sum(running.values()), 1)
        running[kind] += change
        before = now
    return found


class JaxSystem:
    """Calls `step(carry, *inputs)`, whose first result in training is the next carry; it uses its carry up."""

    def __init__(self, task: Task, step, carry: Any, inputs: tuple, *, parameters: int, packages: tuple[str, ...]):
        self.task, self.step, self.carry, self.inputs = task, step, carry, inputs
        self.parameters, self.packages = parameters, packages
        jax.block_until_ready((carry, inputs))

    def run(self, steps: int) -> None:
        """Runs steps one after another and waits for the last; the first call compiles."""
        for _ in range(steps):
            result = self.step(self.carry, *self.inputs)
            if self.task.mode == "training":
                self.carry, result = result
        jax.block_until_ready((self.carry, result))

    def profile(self, steps: int) -> dict[str, float]:
        """Returns the seconds of a step by kind of operation; what runs at a time has equal shares of that time."""
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(steps)
            (path,) = Path(folder).rglob("*.xplane.pb")
            planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        # On a CPU the operations are events of the host, under the names that they have in the program. What other
        # threads compute has a second event, which says that it is done.
        devices = [plane for plane in planes if plane.name.startswith("/device:")] or planes
        events = [event for plane in devices for line in plane.lines for event in line.events]
        done: dict[str, list[float]] = {}
        for event in sorted(events, key=lambda event: -event.start_ns):
            if event.name.startswith("end: "):
                done.setdefault(event.name.removeprefix("end: "), []).append(event.start_ns)
        opcodes = dict(re.findall(r"%(\S+) = .*? ([a-z-]+)\(", self.compiled().as_text()))
        spans = []
        for event in sorted(events, key=lambda event: event.start_ns):
            if event.name in opcodes:
                what = f"{event.name} {opcodes[event.name]}"
                kind = next((kind for kind, names in KINDS.items() if re.search(names, what)), "other")
                ends = done.get(event.name)
                end = ends.pop() if ends else event.start_ns + event.duration_ns
                spans.append((kind, event.start_ns, end))
        return {kind: time / 1e9 / steps for kind, time in shared_time((*KINDS, "other"), spans).items()}

    def device_peak_bytes(self) -> int | None:
        """Returns the most memory of the accelerator in use so far, or None on a CPU."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def compiled(self) -> jax.stages.Compiled:
        """Returns the program of a step."""
        return self.step.lower(self.carry, *self.inputs).compile()

    def bytes_accessed(self) -> float | None:
        """Returns the bytes that a step reads and writes by XLA's count, or None."""
        return (self.compiled().cost_analysis() or {}).get("bytes accessed")

    def check(self) -> None:
        """Has nothing to compare with."""
