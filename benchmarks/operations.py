"""Times each operation of flaxcnn against its stock twin, over the shapes that the networks give it.

    python -m benchmarks.operations --batch 32 --minutes 20

docs/performance.md says what is measured, and how. Results are merged into the files of --output; what was measured
at this commit already is left out, so that the same command goes on where --minutes ended it.
"""

import argparse
import dataclasses
import functools
import inspect
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import flaxcnn
from benchmarks import machine, stock
from benchmarks.networks import NETWORKS
from benchmarks.records import Records, Row, default_output, table
from benchmarks.turns import quartiles, speed_ratios, steps_for, take_turns
from flaxcnn.errors import UserError, first_line

Array = jax.Array
KEYS = ("call", "part", "dtype")
PARTS = ("forward", "with gradient")
TURNS, FEWER_TURNS = 9, 3
MARKED_BELOW = 0.95
LONGER = 8
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}  # of the largest value; the order of sums is free


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of an operation, with shapes and dtypes in the place of arrays.

    Attributes:
      operation: ours.
      arguments: by position.
      keywords: by name.
    """

    operation: Callable
    arguments: tuple
    keywords: dict[str, Any]

    def __str__(self) -> str:
        parts = [_text(argument) for argument in self.arguments]
        known = inspect.signature(self.operation).parameters
        for name, value in self.keywords.items():
            # linen's Conv names every dilation and the layout, which are alike in all networks.
            if value != known[name].default and name not in ("lhs_dilation", "rhs_dilation", "dimension_numbers"):
                parts.append(f"{name}={value}")
        return f"{self.operation.__name__}({', '.join(parts)})"

    @property
    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Those of the arrays."""
        return [argument for argument in self.arguments if isinstance(argument, jax.ShapeDtypeStruct)]

    def bind(self, operation: Callable) -> Callable[..., Array]:
        """Returns a function of the arrays alone."""

        def function(*arrays: Array) -> Array:
            rest = iter(arrays)
            arguments = (next(rest) if isinstance(a, jax.ShapeDtypeStruct) else a for a in self.arguments)
            return operation(*arguments, **self.keywords)

        return function


def _text(argument: Any) -> str:
    return "x".join(map(str, argument.shape)) if isinstance(argument, jax.ShapeDtypeStruct) else str(argument)


def collect(network: str, batch: int, dtype: str) -> dict[str, Call]:
    """Returns the calls that a network makes for a batch of images of its own size, by their text; runs nothing."""
    calls: dict[str, Call] = {}

    def note(operation: Callable) -> Callable:
        @functools.wraps(operation)
        def noted(*arguments: Any, **keywords: Any) -> Array:
            shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) if isinstance(a, Array) else a for a in arguments)
            call = Call(operation, tuple(shapes), keywords)
            calls.setdefault(str(call), call)
            return operation(*arguments, **keywords)

        return noted

    model = stock.network(flaxcnn.create_model(network, dtype=dtype), note)
    images = jax.ShapeDtypeStruct((batch, *flaxcnn.model_info(network).input_shape), jnp.float32)
    with stock.operations(note):
        jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    # The same map pooled adaptively to the size that it has is no work at all.
    return {text: call for text, call in calls.items() if _does_something(call)}


def _does_something(call: Call) -> bool:
    jaxpr = jax.make_jaxpr(call.bind(call.operation))(*call.shapes)
    return bool(jaxpr.eqns)


def measure(call: Call, part: str, seconds: float) -> Row:
    """Returns the figures of one call: ours and the stock twin, in turns that take about so many seconds.

    There are none if both compile to one program, which is only as fast as itself.
    """
    keys = jax.random.split(jax.random.key(0), len(call.shapes) + 1)
    arrays = [jax.random.normal(k, shape.shape, shape.dtype) for k, shape in zip(keys, call.shapes, strict=False)]
    result = jax.eval_shape(call.bind(call.operation), *arrays)
    cotangent = jax.random.normal(keys[-1], result.shape, result.dtype)
    if part != "forward":
        arrays = [cotangent, *arrays]
    programs = {}
    for name, operation in {"ours": call.operation, "stock": stock.twin(call.operation)}.items():
        function = call.bind(operation)
        function = function if part == "forward" else functools.partial(_with_gradient, function)
        programs[name] = jax.jit(function).lower(*arrays).compile()
    if _instructions(programs["ours"]) == _instructions(programs["stock"]):
        return {"same_program": True}
    ours, theirs = (jax.tree.leaves(program(*arrays)) for program in programs.values())
    for own, other in zip(ours, theirs, strict=True):
        stock.assert_close(own.astype(jnp.float32), other.astype(jnp.float32), TOLERANCES[result.dtype.name])

    def run(program: Callable, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            results = program(*arrays)
        jax.block_until_ready(results)
        return time.perf_counter() - start

    runs = {name: functools.partial(run, program) for name, program in programs.items()}
    steps = {name: steps_for(run, seconds / TURNS / 2) for name, run in runs.items()}
    # A stock gradient of a grouped convolution may take half a minute.
    turns = TURNS if max(run(1) for run in runs.values()) < seconds else FEWER_TURNS
    found = take_turns(runs, steps, turns)
    return {
        "ours_milliseconds": 1e3 * quartiles(found["ours"])[1],
        "stock_milliseconds": 1e3 * quartiles(found["stock"])[1],
        "speed_of_ours": speed_ratios(found["ours"], found["stock"]),
    }


def _instructions(program: jax.stages.Compiled) -> str:
    """Returns what a program does, without where in Python it comes from."""
    text = re.sub(r", metadata=\{[^}]*\}", "", program.as_text())
    return re.sub(r"\A.*?^(?=%|ENTRY)", "", text, flags=re.DOTALL | re.MULTILINE)


def _with_gradient(function: Callable, cotangent: Array, *arrays: Array) -> tuple:
    result, pullback = jax.vjp(function, *arrays)
    return result, pullback(cotangent)


def markdown(rows: list[Row]) -> str:
    """Returns a table for each dtype and part, the slowest calls first; rows below 0.95 are bold."""
    text = (
        "`ratio` is how many times as fast ours was as the stock operation, in the same turns; in brackets the\n"
        f"quartiles over the turns. **Bold** is below {MARKED_BELOW}. Where both are compiled to the same program\n"
        "nothing was measured.\n"
    )
    sections: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row['part'].capitalize()}, {row['dtype']}"
        sections.setdefault(title, []).append(row)
    for title, members in sections.items():
        lines = []
        for row in sorted(members, key=lambda row: -row.get("stock_milliseconds", 0)):
            call, networks = f"`{row['call']}`", " ".join(row["networks"])
            if "failed" in row:
                lines.append([call, "", "", f"**{row['failed']}**", networks])
                continue
            if "same_program" in row:
                lines.append([call, "", "", "the same program", networks])
                continue
            low, median, high = row["speed_of_ours"]
            ratio = f"{median:.2f} ({low:.2f} to {high:.2f})"
            cells = [f"{row['ours_milliseconds']:.3g}", f"{row['stock_milliseconds']:.3g}"]
            lines.append([call, *cells, f"**{ratio}**" if median < MARKED_BELOW else ratio, networks])
        text += f"\n## {title}\n\n" + table(("call", "ours, ms", "stock, ms", "ratio", "networks"), lines)
    return text


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--networks", nargs="+", metavar="NAME", help="by default those of benchmarks.networks")
    add("--batch", type=int, default=32, help="images (32)")
    add("--seconds", type=float, default=2.0, help="about so long is each call measured (2)")
    add("--minutes", type=float, default=20.0, help="after so long no further call is begun (20)")
    add("--dtype", choices=TOLERANCES, default="float32")
    add("--output", type=Path, help="of the files, without ending (benchmarks/results/operations-DEVICE)")
    return parser.parse_args()


def main(flags: argparse.Namespace) -> None:
    """Measures what the command line asks for, and writes the files after each call."""
    platform, device = machine.device()
    output = flags.output or default_output("operations", device, platform)
    records = Records(output.with_suffix(".json"), KEYS, machine.hardware(device, platform))
    calls: dict[str, Call] = {}
    networks: dict[str, list[str]] = {}
    for network in flags.networks or NETWORKS["cpu" if platform == "cpu" else "gpu"]:
        for text, call in collect(network, flags.batch, flags.dtype).items():
            calls.setdefault(text, call)
            networks.setdefault(text, []).append(network)
    rows = [
        {"call": text, "part": part, "dtype": flags.dtype, "networks": networks[text]}
        for text in calls
        for part in PARTS
    ]
    revision, end = machine.revision(), time.monotonic() + 60 * flags.minutes
    missing = [row for row in rows if not records.has(row, revision)]
    for number, row in enumerate(missing):
        if time.monotonic() > end:
            print(f"{len(missing) - number} of {len(rows)} are left; the same command goes on with them")
            break
        try:
            found = measure(calls[row["call"]], row["part"], flags.seconds)
            if "same_program" not in found and found["speed_of_ours"][1] < MARKED_BELOW:
                # It may have been the machine: a longer look counts, whatever it shows.
                found = measure(calls[row["call"]], row["part"], LONGER * flags.seconds)
            row |= found
            said = "the same program"
            if "same_program" not in row:
                said = "ours {ours_milliseconds:.3g} ms, stock {stock_milliseconds:.3g} ms".format(**row)
                said += f", ratio {row['speed_of_ours'][1]:.2f}"
        except (AssertionError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            said = row["failed"] = first_line(error)
        print(f"{row['call']}, {row['part']}: {said}", flush=True)
        records.add([row], revision)
    records.write_csv()
    records.write_markdown(markdown(records.rows))


if __name__ == "__main__":
    flags = _parse()
    try:
        main(flags)
    except UserError as error:
        sys.exit(f"error: {first_line(error, 1000)}")
