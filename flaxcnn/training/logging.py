"""What a run leaves on the screen and on disk while it goes: progress, metrics.jsonl, TensorBoard events."""

import datetime
import json
import math
import time
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from flaxcnn.atomic import write_whole
from flaxcnn.errors import printable

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends records to `metrics.jsonl` and to TensorBoard event files.

    A record is a flat dict with `kind` ("interval", "epoch", "test" or "averaged"), `step` and `epoch`. When a run
    continues from step S, records of later steps are dropped first, so that the file ends up as if nothing had
    happened.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        self._path = workdir / METRICS_FILE
        kept = [record for record in read_metrics(workdir) if record["step"] <= start_step and start_step]
        write_whole(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a")
        # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and the run then waits for it forever.
        self._events = EventsWriter(str(workdir / "events"))
        if start_step:  # TensorBoard hides what it has of later steps
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=start))

    def write(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one record."""
        # JSON knows no NaN.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **known}) + "\n")
        self._file.flush()
        for name, value in values.items():
            summary = scalar(f"{kind}/{name}", value)
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Puts the TensorBoard events on disk, which wait in a buffer; `metrics.jsonl` is always up to date."""
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of a work directory; a last line cut off by a crash is left out."""
    path = workdir / METRICS_FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def say(console: rich.console.Console, line: str) -> None:
    """Prints a line as it is: no wrapping, no colours, no pictures for words between colons."""
    console.print(printable(line), highlight=False, soft_wrap=True, markup=False, emoji=False)


class Recorder:
    """Records a run and shows it: a moving bar on a terminal, and one line an epoch in any case.

    A context; it takes the bar away and closes the files at the end. Without a work directory nothing is written.
    """

    def __init__(
        self,
        workdir: Path | None,
        console: rich.console.Console,
        *,
        start: int,
        total: int,
        per_epoch: int,
        batch_size: int,
    ):
        self._console, self._log = console, workdir and MetricsLog(workdir, start_step=start)
        self._total, self._per_epoch, self._batch_size = total, per_epoch, batch_size
        self._steps_per_second = 0.0
        self._waited, self._waiting = 0.0, 0.0  # seconds so far, and the share of the time measured last
        self._clock: tuple[int, float] | None = None
        columns = (
            rich.progress.TextColumn("epoch {task.fields[epoch]}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("{task.fields[numbers]}"),
        )
        self._bar = rich.progress.Progress(
            *columns, console=console, transient=True, expand=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("", total=total, completed=start, epoch=self._epoch(start + 1), numbers="")

    def __enter__(self) -> "Recorder":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if self._log:
            self._log.close()

    def tick(self, step: int) -> None:
        """Notes that a step is about to be taken."""
        if self._clock is None:
            self._clock = step - 1, time.perf_counter()

    def measure(self, step: int, waited: float = 0.0) -> None:
        """Takes the speed up to this step, which the device has finished; the next tick starts the clock again.

        Args:
          step: the last one taken.
          waited: for how many seconds of the run so far the device had no batch to work on.
        """
        if self._clock is not None:
            since, seconds = step - self._clock[0], time.perf_counter() - self._clock[1]
            self._steps_per_second = since / max(seconds, 1e-9)
            self._waiting = min((waited - self._waited) / max(seconds, 1e-9), 1.0)
            self._clock = None
        self._waited = waited

    def interval(self, step: int, means: dict[str, float], learning_rate: float) -> None:
        """Records the training since the last such record."""
        rate = {
            "learning_rate": learning_rate,
            "images_per_second": self._images_per_second,
            "waiting_for_data": self._waiting,
        }
        self._write("interval", step, {**means, **rate})
        numbers = f"loss {means['loss']:.4f}  accuracy {means['accuracy']:.4f}  {self._speed(step)}"
        self._bar.update(self._task, completed=step, epoch=self._epoch(step), numbers=numbers)

    def test(self, kind: str, step: int, scalars: dict[str, float]) -> None:
        """Records an evaluation of the live ("test") or the averaged parameters ("averaged")."""
        self._write(kind, step, scalars)

    def epoch(self, step: int, means: dict[str, float], accuracies: dict[str, float]) -> None:
        """Records an epoch, and prints its line, with the accuracies of the evaluations at its end by kind."""
        self._write("epoch", step, means)
        tested = "".join(f"  {kind} accuracy {accuracy:.4f}" for kind, accuracy in accuracies.items())
        skipped = f"  {means['skipped']} steps skipped" if means["skipped"] else ""
        left_out = f"  {means['left_out']:,} left out" if means["left_out"] else ""
        numbers = f"loss {means['loss']:.4f}  accuracy {means['accuracy']:.4f}{tested}{skipped}{left_out}"
        say(self._console, f"epoch {self._epoch(step)}  {numbers}  {self._speed(step)}")

    def flush(self) -> None:
        """Puts all records on disk, before a checkpoint after which they would not be made again."""
        if self._log:
            self._log.flush()

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        if self._log:
            self._log.write(kind, step, step / self._per_epoch, values)

    @property
    def _images_per_second(self) -> float:
        return self._steps_per_second * self._batch_size

    def _epoch(self, step: int) -> str:
        epochs = math.ceil(self._total / self._per_epoch)
        return f"{math.ceil(step / self._per_epoch):>{len(str(epochs))}}/{epochs}"

    def _speed(self, step: int) -> str:
        seconds = (self._total - step) / self._steps_per_second if self._steps_per_second else 0
        waiting = f"  {self._waiting:.0%} waiting for data" if self._waiting >= 0.005 else ""
        return f"{self._images_per_second:,.0f} images/s{waiting}  eta {datetime.timedelta(seconds=round(seconds))}"
