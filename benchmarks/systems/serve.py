"""The side of a system: it prepares one task, and then runs as many steps as it is told, when it is told.

It speaks with `benchmarks.networks` in lines of JSON and needs nothing but the standard library, because torch and
Keras may have a Python of their own.

    in   a task                    out  {"ready": {...}}, {"absent": "not in ..."} or {"failed": "one line"}
    in   {"steps": n}              out  {"seconds": s}
    in   {"profile": n}            out  {"profile": {kind: s}}
    in   {"finish": true}          out  {"finished": {...}}
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Absent(Exception):
    """The system has no such network."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a system runs, over and over, on one batch that lies on the device.

    Attributes:
      system: its key in `benchmarks.networks.SYSTEMS`.
      network: a name of flaxcnn's.
      mode: "training" or "inference".
      batch: images.
      image_shape: (height, width, channels).
      num_classes: length of the logits.
      dtype: "float32" or "bfloat16", of the computation; parameters are float32 in training.
      threads: of a CPU.
    """

    system: str
    network: str
    mode: str
    batch: int
    image_shape: tuple[int, int, int]
    num_classes: int
    dtype: str
    threads: int


class System(Protocol):
    """A task prepared: network and batch are on the device, nothing has been compiled.

    Attributes:
      parameters: trainable ones of the network.
      packages: whose versions matter.
    """

    parameters: int
    packages: tuple[str, ...]

    def run(self, steps: int) -> None:
        """Runs steps one after another and waits for the last; the first call compiles."""

    def profile(self, steps: int) -> dict[str, float]:
        """Returns the seconds of a step by kind of operation, over so many steps.

        The kinds are "convolution", "product", "sum" and "other"; torch has its norms as "norm", sums and all.
        """

    def device_peak_bytes(self) -> int | None:
        """Returns the most memory of the accelerator in use so far, or None on a CPU."""

    def bytes_accessed(self) -> float | None:
        """Returns the bytes that a step reads and writes by the compiler's count, or None."""

    def check(self) -> None:
        """Raises `AssertionError` if the system does not compute what it should."""


def serve(prepare: Callable[[Task], System]) -> None:
    """Answers on standard output until standard input ends."""
    # Libraries write to standard output, too: theirs goes where the errors go.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**message) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        task = json.loads(sys.stdin.readline())
        system = prepare(Task(**{**task, "image_shape": tuple(task["image_shape"])}))
        start = time.perf_counter()
        system.run(1)
        answer(
            ready={
                "first_seconds": time.perf_counter() - start,
                "parameters": system.parameters,
                "versions": {name: importlib.metadata.version(name) for name in system.packages},
            }
        )
        _forget_peak()
        for line in sys.stdin:
            command = json.loads(line)
            if "steps" in command:
                start = time.perf_counter()
                system.run(command["steps"])
                answer(seconds=time.perf_counter() - start)
            elif "profile" in command:
                answer(profile=system.profile(command["profile"]))
            else:
                peak = system.device_peak_bytes() or _peak_bytes()
                system.check()
                answer(finished={"peak_bytes": peak, "bytes_accessed": system.bytes_accessed()})
    except Absent as reason:
        answer(absent=str(reason))
    except ModuleNotFoundError as error:
        answer(failed=f"{error.name} is not installed")
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        answer(failed=f"{type(error).__name__}: {text}"[:200])
        raise  # the traceback goes to the error output


def _forget_peak() -> None:
    """Makes Linux count the peak from here on: compiling takes more memory than what is compiled."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory includes compilation", file=sys.stderr)


def _peak_bytes() -> int | None:
    """Returns the most memory that this process has held."""
    try:
        status = Path("/proc/self/status").read_text().split()
    except OSError:
        return None
    return int(status[status.index("VmHWM:") + 1]) * 1024
