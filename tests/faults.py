"""What a run survives: each fault is done to a real process, and what became of it is looked at.

    python -m tests.faults        # writes the table of docs/reliability.md; takes about a quarter of an hour

The run is LeNet-5 with BatchNorm on `digits`, from a stream, in 264 steps with a checkpoint every 7. After each
fault the same command is given again, and the end must be that of a run to which nothing was done: parameters,
running statistics, momentum, random key and all records but the speed, bit for bit.
"""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- the table -->", "<!-- the end of the table -->"
STEPS = 264
KILLS = 20
# What no two runs share.
TIMES = ("images_per_second", "waiting_for_data")
NOT_TRIED = "could not be tried: no right to mount a small file system"
FLAGS = (
    "--config.model.options.norm=batch_norm",
    "--config.optimizer.ema_decay=0.99",
    "--config.data.image_size=12",
    "--config.data.loading=stream",
    "--config.data.workers=1",
    "--config.duration=6 epochs",
    "--config.logging.every=10 steps",
    "--config.checkpoint.every=7 steps",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run: what it printed last, and what the same command did then."""

    printed: str
    then: str = "ends as if nothing had happened, bit for bit"


class Run:
    """A run of `train.py` in a folder, in processes of its own."""

    devices = 1

    def __init__(self, folder: Path, data: Path):
        self.workdir, self.data = folder / "run", data

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its processes."""
        devices, path = str(self.devices), str(ROOT)
        return os.environ | {"TFDS_DATA_DIR": str(self.data), "JAX_NUM_CPU_DEVICES": devices, "PYTHONPATH": path}

    def start(self, *flags: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "train.py"), f"--workdir={self.workdir}", *FLAGS, *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment, **pipes)

    def finish(self, *flags: str, code: int = 0) -> str:
        """Runs to the end, which must have an exit code; returns what was printed."""
        return self.end(self.start(*flags), code)

    def end(self, process: subprocess.Popen, code: int = 0) -> str:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == code, printed
        assert "Traceback" not in printed, printed
        return printed

    @property
    def steps_done(self) -> int:
        return max((record["step"] for record in self.records()), default=0)

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of whole checkpoints, the newest last."""
        folders = (self.workdir / "checkpoints").glob("*")
        return sorted((path for path in folders if path.name.isdecimal()), key=lambda path: int(path.name))

    def wait_until(self, condition: Callable[[], bool], process: subprocess.Popen) -> None:
        deadline = time.monotonic() + 120
        while not condition() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[0]

    def records(self) -> list[dict]:
        """All metrics but those of speed."""
        path = self.workdir / "metrics.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
                record = json.loads(line)
                records.append({name: value for name, value in record.items() if name not in TIMES})
        return records

    def results(self) -> dict:
        return json.loads((self.workdir / "results.json").read_text())

    def state(self) -> list[np.ndarray]:
        """All arrays of the newest checkpoint."""
        from tests.checkpoints import saved_arrays

        return saved_arrays(self.workdir)

    def assert_ended_like(self, other: "Run") -> None:
        """Asserts that two runs ended in the same state with the same records, bit for bit."""
        assert self.steps_done == other.steps_done == STEPS
        for found, expected in zip(self.state(), other.state(), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert self.records() == other.records()
        assert self.results() == other.results()


def last_line(printed: str) -> str:
    return printed.strip().splitlines()[-1]


def sigkill(run: Run) -> Outcome:
    """SIGKILL at 20 random moments, every third in the middle of a save"""
    seed = int.from_bytes(os.urandom(4), "little")
    rng = random.Random(seed)
    print(f"moments of the kills drawn from seed {seed}", file=sys.stderr)
    for kill in range(KILLS):
        process = run.start()
        # A moment anywhere in the next part of the run, down to the middle of a step.
        target = STEPS * (kill + rng.random()) / (KILLS + 2)
        run.wait_until(lambda target=target: run.steps_done >= target, process)
        if kill % 3 == 0:
            half_written = run.workdir / "checkpoints"
            run.wait_until(lambda folder=half_written: any(folder.glob("*tmp*")), process)
        else:
            time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
    run.finish()
    return Outcome("nothing")


def stopped_by(number: signal.Signals) -> Callable[[Run], Outcome]:
    def stop(run: Run) -> Outcome:
        process = run.start()
        run.wait_until(lambda: run.steps_done >= 100, process)
        process.send_signal(number)
        printed = run.end(process, code=128 + number)
        run.finish()
        return Outcome(last_line(printed))

    stop.__doc__ = number.name
    return stop


def damaged_by(what: str, damage: Callable[[Path], None]) -> Callable[[Run], Outcome]:
    def do_damage(run: Run) -> Outcome:
        process = run.start()
        run.wait_until(lambda: len(run.checkpoints) > 1 and run.steps_done >= 100, process)
        process.terminate()
        run.end(process, code=128 + signal.SIGTERM)
        newest = run.checkpoints[-1]
        damage(newest)
        printed = run.finish()
        assert any((run.workdir / "damaged").glob(f"{newest.name}-*"))
        return Outcome(next(line for line in printed.splitlines() if line.startswith("warning: ")))

    do_damage.__doc__ = what
    return do_damage


def truncate(checkpoint: Path) -> None:
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(checkpoint: Path) -> None:
    path = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def delete_metadata(checkpoint: Path) -> None:
    for path in [*checkpoint.rglob("*METADATA*"), *checkpoint.rglob("array_metadatas/*")]:
        path.unlink()


def spoil_the_accuracy(checkpoint: Path) -> None:
    folder = checkpoint / "metrics"
    folder.mkdir(exist_ok=True)
    (folder / "metrics").write_text('{"accur')


def all_damaged(run: Run) -> Outcome:
    """every checkpoint truncated"""
    process = run.start()
    run.wait_until(lambda: run.steps_done >= 100, process)
    process.terminate()
    run.end(process, code=128 + signal.SIGTERM)
    backup = run.workdir.with_name("backup")
    shutil.copytree(run.workdir / "checkpoints", backup)
    for checkpoint in run.checkpoints:
        truncate(checkpoint)
    before = len(run.checkpoints)
    printed = run.finish(code=2)
    assert len(run.checkpoints) == before
    shutil.rmtree(run.workdir / "checkpoints")
    backup.rename(run.workdir / "checkpoints")
    run.finish()
    return Outcome(last_line(printed), "leaves all as it is; with the files put back, " + Outcome("").then)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mounts a small file system, where that is allowed; in the end the folder holds what was on it."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
        shutil.copytree(folder, folder.with_name("kept"))
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
    folder.with_name("kept").rename(folder)


def disk_full_at_a_checkpoint(run: Run) -> Outcome:
    """disk full at a checkpoint"""
    # A checkpoint takes 340 KiB, and is begun if there are 1,200.
    with small_disk(run.workdir, "1400k") as mounted:
        if not mounted:
            return Outcome(NOT_TRIED)
        printed = run.finish(code=2)
        assert run.checkpoints
        subprocess.run(["mount", "-o", "remount,size=50m", str(run.workdir)], check=True)
        run.finish()
    return Outcome(last_line(printed), "with space made, " + Outcome("").then)


def disk_full_at_a_record(run: Run) -> Outcome:
    """disk full at a record"""
    with small_disk(run.workdir, "20m") as mounted:
        if not mounted:
            return Outcome(NOT_TRIED)
        process = run.start("--config.checkpoint.every=100 steps")
        run.wait_until(lambda: bool(run.checkpoints), process)
        filler = run.workdir / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        printed = run.end(process, code=2)
        filler.unlink()
        run.finish()
    return Outcome(last_line(printed), "with space made, " + Outcome("").then)


def decoder_killed(run: Run) -> Outcome:
    """SIGKILL to a process that decodes images"""
    process = run.start()
    run.wait_until(lambda: run.steps_done >= 100, process)
    os.kill(decoders(process)[0], signal.SIGKILL)
    printed = run.end(process, code=2)
    run.finish()
    return Outcome(last_line(printed))


def decoders(process: subprocess.Popen) -> list[int]:
    """The processes that decode for a run."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [child for path in tasks for child in path.read_text().split()]
    return [int(child) for child in children if b"flaxcnn.data" in Path(f"/proc/{child}/cmdline").read_bytes()]


def data_gone(run: Run) -> Outcome:
    """a data file removed while the run goes on, and at the next start"""
    process = run.start()
    run.wait_until(lambda: run.steps_done >= 100, process)
    (record_file,) = run.data.rglob("*train*array_record*")
    hidden = record_file.with_name("hidden")
    record_file.rename(hidden)
    try:
        run.wait_until(lambda: run.steps_done >= 150, process)  # those that decode have it open
        process.terminate()
        run.end(process, code=128 + signal.SIGTERM)
        printed = run.finish(code=2)
    finally:
        hidden.rename(record_file)
    run.finish()
    return Outcome(last_line(printed), "with the file put back, " + Outcome("").then)


def not_a_number(run: Run) -> Outcome:
    """a loss that is not a number (the learning rate was set to 1e30)"""
    process = run.start()
    run.wait_until(lambda: run.steps_done >= 100, process)
    process.terminate()
    run.end(process, code=128 + signal.SIGTERM)
    steps = [path.name for path in run.checkpoints]
    # No save on the first step, whose gradient is still finite.
    printed = run.finish("--config.optimizer.learning_rate=1e30", "--config.checkpoint.every=1000 steps", code=2)
    assert [path.name for path in run.checkpoints] == steps
    run.finish()
    return Outcome(last_line(printed), "with the old rate, " + Outcome("").then)


def two_at_once(run: Run) -> Outcome:
    """a second run in the same folder"""
    process = run.start()
    run.wait_until(lambda: run.steps_done >= 20, process)
    printed = run.finish(code=2)
    run.end(process)
    return Outcome(last_line(printed), "the first goes on; it " + Outcome("").then)


def cache_damaged(run: Run) -> Outcome:
    """compiled programs in the cache truncated"""
    cache = run.workdir.with_name("compiled")
    with variables(JAX_COMPILATION_CACHE_DIR=str(cache)):
        process = run.start()
        run.wait_until(lambda: run.steps_done >= 100, process)
        process.terminate()
        run.end(process, code=128 + signal.SIGTERM)
        programs = list(cache.glob("*-cache"))
        assert programs
        for program in programs:
            program.write_bytes(program.read_bytes()[: program.stat().st_size // 2])
        run.end(run.start())
    return Outcome("a warning for each program, which is compiled anew")


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Sets environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Pair(Run):
    """Two processes with two devices each."""

    devices = 2

    def start_both(self, *flags: str) -> list[subprocess.Popen]:
        flags = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", *flags)
        return [self.start(*flags, f"--process_id={index}") for index in range(2)]

    def finish_both(self, *flags: str, code: int = 0) -> list[str]:
        return self.end_both(self.start_both(*flags), code)

    def end_both(self, processes: list[subprocess.Popen], code: int = 0) -> list[str]:
        return [self.end(process, code) for process in processes]


def one_of_two_terminated(pair: Pair) -> Outcome:
    """SIGTERM to one of two processes"""
    processes = pair.start_both()
    pair.wait_until(lambda: pair.steps_done >= 50, processes[0])
    processes[1].terminate()
    printed = pair.end_both(processes, code=128 + signal.SIGTERM)[0]
    pair.finish_both()
    return Outcome(last_line(printed))


def decoder_of_one_of_two_killed(pair: Pair) -> Outcome:
    """SIGKILL to a process that decodes for one of two processes"""
    processes = pair.start_both()
    pair.wait_until(lambda: pair.steps_done >= 50, processes[0])
    os.kill(decoders(processes[1])[0], signal.SIGKILL)
    printed = pair.end_both(processes, code=2)
    pair.finish_both()
    return Outcome(last_line(printed[1]))


def one_of_two_killed(pair: Pair) -> Outcome:
    """SIGKILL to one of two processes"""
    processes = pair.start_both()
    pair.wait_until(lambda: pair.steps_done >= 50, processes[0])
    processes[0].kill()
    printed, _ = processes[1].communicate(timeout=200)
    processes[0].communicate()
    assert processes[1].returncode != 0
    (line,) = (line for line in printed.splitlines() if "Terminating process because" in line)
    pair.finish_both()
    sentence = line[line.index("Terminating") :].split(". ")[0]
    return Outcome(f"the other ends within 100 s: {sentence}, with a stack trace of JAX's")


SINGLE = {
    "kill": sigkill,
    "terminate": stopped_by(signal.SIGTERM),
    "interrupt": stopped_by(signal.SIGINT),
    "truncated": damaged_by("newest checkpoint truncated", truncate),
    "bit": damaged_by("one bit of the newest checkpoint changed", flip_a_bit),
    "metadata": damaged_by("metadata of the newest checkpoint deleted", delete_metadata),
    "accuracy": damaged_by("accuracy of the newest checkpoint cut off", spoil_the_accuracy),
    "all_truncated": all_damaged,
    "disk_checkpoint": disk_full_at_a_checkpoint,
    "disk_record": disk_full_at_a_record,
    "decoder": decoder_killed,
    "data": data_gone,
    "nan": not_a_number,
    "twice": two_at_once,
    "cache": cache_damaged,
}
DOUBLE = {
    "one_terminated": one_of_two_terminated,
    "one_decoder": decoder_of_one_of_two_killed,
    "one_killed": one_of_two_killed,
}


def try_fault(name: str, folder: Path, data: Path, whole: Run) -> Outcome:
    """Does a fault to a new run in a folder, and asserts that in the end it equals one that was left alone."""
    folder.mkdir()
    run = (Pair if name in DOUBLE else Run)(folder, data)
    outcome = (SINGLE | DOUBLE)[name](run)
    if outcome.printed != NOT_TRIED:
        run.assert_ended_like(whole)
    return outcome


def main() -> None:
    """Tries every fault, and writes what came of it into the page."""
    rows = ["| fault | what is printed | the same command then |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "tfds")
        for kind, names in ((Run, SINGLE), (Pair, DOUBLE)):
            whole = kind(Path(folder, kind.__name__), data)
            whole.finish_both() if isinstance(whole, Pair) else whole.finish()
            for name, fault in names.items():
                outcome = try_fault(name, Path(folder, name), data, whole)
                printed = outcome.printed
                for part in (Path(folder, name), folder):
                    printed = printed.replace(f"{part}{os.sep}", "")
                rows.append(f"| {fault.__doc__} | {printed} | {outcome.then} |")
                print(rows[-1], file=sys.stderr, flush=True)
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(rows) + "\n" + END + after)


if __name__ == "__main__":
    main()
