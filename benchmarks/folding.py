"""Measures what folding BatchNorm into convolutions saves at inference, in one run.

    python -m benchmarks.folding --output benchmarks/results/folding.json

ResNet-50 at 224 pixels with random weights, compiled, as it is and after `flaxcnn.fold_batch_norm`, a batch of 8
and of one image. They take turns; a ratio is the time of the unfolded network over that of the folded one within a
turn, and the figure is the median over the turns, between its quartiles. A third network, "bare", has nothing in
the place of its norms, neither scale nor offset: the most that folding could save.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxcnn
from benchmarks import machine
from benchmarks.turns import Run, calls_of, speed_ratios, steps_for, take_turns

SIZE = 224
SECONDS = 0.5  # of a network in a turn, about


def variables_of(model: Any) -> Any:
    """Returns variables as training might leave them: He's kernels, scales and variances around 1."""
    rng = np.random.default_rng(0)
    images = jnp.zeros((1, SIZE, SIZE, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def draw(path: Any, leaf: Any) -> jax.Array:
        if leaf.ndim > 1:
            values = rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def compare(networks: dict[str, Any], batch: int, turns: int) -> dict[str, Any]:
    """Returns the median time of each network, and how many times as fast each other one is as the first."""
    images = jnp.asarray(np.random.default_rng(1).standard_normal((batch, SIZE, SIZE, 3)), jnp.float32)

    def make_run(model: Any, variables: Any) -> Run:
        program = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
        return calls_of(program, variables, images)

    runs = {name: make_run(*network) for name, network in networks.items()}
    seconds = take_turns(runs, {name: steps_for(run, SECONDS) for name, run in runs.items()}, turns)
    first, *others = runs
    return {
        "batch": batch,
        "turns": turns,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "times_as_fast": {name: speed_ratios(seconds[name], seconds[first]) for name in others},
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--turns", type=int, default=21, help="of each network")
    arguments = parser.parse_args()
    model = flaxcnn.create_model("resnet50")
    bare = model.clone(norm=lambda **fields: lambda x: x)
    variables = variables_of(model)
    networks = {
        "unfolded": (model, variables),
        "folded": flaxcnn.fold_batch_norm(model, variables),
        "bare": (bare, variables_of(bare)),
    }
    result = {
        "hardware": machine.hardware(*reversed(machine.device())),
        "jax": jax.__version__,
        "network": f"resnet50, float32, {SIZE} pixels",
        "results": [compare(networks, batch, arguments.turns) for batch in (8, 1)],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
