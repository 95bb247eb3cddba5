"""Measuring by turns, so that a machine whose speed drifts is fair: in each, all take part, in changing order."""

import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence

import jax

# Seconds that a number of steps took.
Run = Callable[[int], float]


def calls_of(program: Callable, *arguments) -> Run:
    """Returns a run whose steps are calls of a program of JAX, each of which is waited for."""

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            jax.block_until_ready(program(*arguments))
        return time.perf_counter() - start

    return run


def steps_for(run: Run, seconds: float) -> int:
    """Returns how many steps take about so many seconds, 1 or more; running them warms up."""
    steps = 1
    while (taken := max(run(steps), 1e-6)) < seconds / 4:
        steps = math.ceil(steps * min(seconds / taken, 10))
    return max(round(steps * seconds / taken), 1)


def take_turns(
    runs: Mapping[Hashable, Run], steps: Mapping[Hashable, int], turns: int
) -> dict[Hashable, list[float]]:
    """Returns, for each run, the seconds a step of each turn.

    Before each measurement one step is run and not counted: it brings back into caches, and into memory, what the
    others have driven out, which alone would take no part in a run of many steps.
    """
    shuffle = random.Random(0).shuffle
    found: dict[Hashable, list[float]] = {key: [] for key in runs}
    for _ in range(turns):
        order = list(runs)
        shuffle(order)
        for key in order:
            runs[key](1)
            found[key].append(runs[key](steps[key]) / steps[key])
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def speed_ratios(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Returns the quartiles of how many times as fast as the peer we were within each turn, from seconds a step."""
    return quartiles([theirs / own for own, theirs in zip(ours, peer, strict=True)])
