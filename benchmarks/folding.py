"""Measures what folding BatchNorm into convolutions saves at inference, in one run.

    python benchmarks/folding.py --output benchmarks/results/folding.json

ResNet-50 at 224 pixels with random weights, compiled, as it is and after `flaxcnn.fold_batch_norm`, a batch of 8
and of one image. They take turns, in one order and then in the other; a ratio is the time of the unfolded network
over that of the folded one within a turn, and the figure is the median over the turns beside its quartiles. "wall"
is the time that passed, "cpu" that of all threads of the process, which other work on the machine upsets less. A
third network, "bare", has nothing in the place of its norms, neither scale nor offset: the most that folding could
save.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxcnn
from flaxcnn import launch

SIZE = 224


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
    """Returns the median time of each network, and the ratios of the first's to each other's."""
    images = jnp.asarray(np.random.default_rng(1).standard_normal((batch, SIZE, SIZE, 3)), jnp.float32)
    programs = {}
    for name, (model, variables) in networks.items():
        programs[name] = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False)), variables
        jax.block_until_ready(programs[name][0](variables, images))
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in programs} for clock in clocks}
    for turn in range(turns):
        for name in list(programs)[:: 1 if turn % 2 else -1]:
            program, variables = programs[name]
            start = {clock: read() for clock, read in clocks.items()}
            jax.block_until_ready(program(variables, images))
            for clock, read in clocks.items():
                times[clock][name].append(read() - start[clock])
    first, *others = programs
    seconds = {name: round(statistics.median(values), 3) for name, values in times["wall"].items()}
    result: dict[str, Any] = {"seconds": seconds}
    for name in others:
        for clock, measured in times.items():
            ratios = [mine / other for mine, other in zip(measured[first], measured[name], strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4)
            spread = {"lower_quartile": low, "median": median, "upper_quartile": high}
            result[f"{first}_over_{name}_{clock}"] = {key: round(value, 3) for key, value in spread.items()}
    return {"batch": batch, "turns": turns, **result}


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
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    device = jax.devices()[0]
    result = {
        "hardware": {
            "device": f"{device.platform}: {device.device_kind}",
            "cpu": cpu.partition(": ")[2] or platform.processor(),
            "cores": os.cpu_count(),
            "load_average_before": round(os.getloadavg()[0], 1),
        },
        "jax": jax.__version__,
        "network": f"resnet50, float32, {SIZE} pixels",
        "results": [compare(networks, batch, arguments.turns) for batch in (8, 1)],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    launch.prepare_process()  # as `python -m flaxcnn` does
    main()
