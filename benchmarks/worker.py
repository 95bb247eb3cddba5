"""A system in a process of its own, as `benchmarks.networks` sees it."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.systems.serve import Task


class Failure(Exception):
    """What a system said instead of an answer; `key` is "absent" or "failed"."""

    def __init__(self, system: str, key: str, reason: str):
        super().__init__(reason)
        self.system, self.key = system, key


class Worker:
    """A system in a process of its own, with its task prepared; a context that ends the process."""

    def __init__(self, task: Task, python: str, module: str, cache: Path):
        """Starts `module` of `benchmarks.systems`, with compiled programs kept in `cache`; `ready` is its answer.

        Raises:
          Failure: it cannot.
        """
        self._system = task.system
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the systems share the device
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TRITON_CACHE_DIR": str(cache / "triton"),
            "OMP_NUM_THREADS": str(task.threads),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed on exit
        try:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.systems.{module}"],
                cwd=machine.ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise Failure(task.system, "failed", f"{python}: {error.strerror}") from None
        try:
            self.ready = self._ask(dataclasses.asdict(task))["ready"]
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends when it has nothing more to read
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def run(self, steps: int) -> float:
        """Returns the seconds that so many steps took."""
        return self._ask({"steps": steps})["seconds"]

    def profile(self, steps: int) -> dict[str, float]:
        """Returns the seconds of a step by kind of operation, over so many steps."""
        return self._ask({"profile": steps})["profile"]

    def finish(self) -> dict[str, Any]:
        """Returns the peak of memory and the bytes that a step accesses."""
        return self._ask({"finish": True})["finished"]

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or [""]
            missing = re.match(r"ModuleNotFoundError: No module named '([^'.]+)", last[0])
            reason = f"{missing[1]} is not installed" if missing else f"ended with code {code}: {last[0]}"[:200]
            raise Failure(self._system, "failed", reason)
        answer = json.loads(line)
        for key in answer.keys() & {"absent", "failed"}:
            raise Failure(self._system, key, answer[key])
        return answer
