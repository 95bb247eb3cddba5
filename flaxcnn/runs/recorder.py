"""Progress and metrics of a run: console output, metrics.jsonl and TensorBoard events."""

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
from flaxcnn.terminal import printable

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends records to `metrics.jsonl` and to TensorBoard event files.

    A record is a flat dict of `kind` ("interval", "epoch", "test" or "averaged"), `step`, `epoch` and the metrics.
    When a run continues from step S, the records of later steps are removed first, so that the file ends up as if
    the run had never stopped.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        self._path = workdir / METRICS_FILE
        kept = [record for record in read_metrics(workdir) if record["step"] <= start_step and start_step]
        write_whole(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a")
        # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and the run then waits for it forever.
        self._events = EventsWriter(str(workdir / "events"))
        if start_step:  # makes TensorBoard hide the events of later steps
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=start))

    def write(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one record, in JSON with null for values that are not finite.

        Args:
          kind: kind of the record, see the class.
          step: number of steps taken.
          epoch: number of epochs trained, as a fraction.
          values: the metrics, by name.
        """
        # JSON has neither NaN nor infinity.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **known}) + "\n")
        self._file.flush()
        for name, value in values.items():
            summary = scalar(f"{kind}/{name}", value)
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Writes buffered TensorBoard events to disk; `metrics.jsonl` is always up to date."""
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records in `metrics.jsonl` of a work directory, up to the first line that is not valid JSON.

    Only the last line can be invalid, if a crash has cut it off.
    """
    path = workdir / METRICS_FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def say(console: rich.console.Console, line: str) -> None:
    """Prints a line without wrapping, colors or emoji."""
    console.print(printable(line), highlight=False, soft_wrap=True, markup=False, emoji=False)


class Recorder:
    """Records the metrics of a run and shows its progress: a bar on a terminal, and one line per epoch.

    It is a context manager, whose exit removes the bar and closes the files.
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
        """Opens the files.

        Args:
          workdir: the work directory; None writes no files.
          console: console to print to.
          start: number of steps already taken, by the run that this one continues.
          total: number of steps of the whole run.
          per_epoch: number of steps per epoch.
          batch_size: images per step over all devices.
        """
        self._console, self._log = console, workdir and MetricsLog(workdir, start_step=start)
        self._total, self._per_epoch, self._batch_size = total, per_epoch, batch_size
        self._steps_per_second = 0.0
        self._waited, self._waiting = 0.0, 0.0  # seconds in total; fraction of the last measured time
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
        """Starts the clock before `step`, unless it is running."""
        if self._clock is None:
            self._clock = step - 1, time.perf_counter()

    def measure(self, step: int, waited: float = 0.0) -> None:
        """Stops the clock and computes the speed. To be called when the device has finished `step`.

        Args:
          step: the last step taken.
          waited: seconds since the start for which the device had no batch to work on.
        """
        if self._clock is not None:
            since, seconds = step - self._clock[0], time.perf_counter() - self._clock[1]
            self._steps_per_second = since / max(seconds, 1e-9)
            self._waiting = min((waited - self._waited) / max(seconds, 1e-9), 1.0)
            self._clock = None
        self._waited = waited

    def interval(self, step: int, means: dict[str, float], learning_rate: float) -> None:
        """Records the training metrics since the previous call.

        Args:
          step: the last step taken.
          means: means of the metrics over the steps since the previous call.
          learning_rate: learning rate of these steps.
        """
        rate = {
            "learning_rate": learning_rate,
            "images_per_second": self._images_per_second,
            "waiting_for_data": self._waiting,
        }
        self._write("interval", step, {**means, **rate})
        numbers = f"loss {means['loss']:.4f}  accuracy {means['accuracy']:.4f}  {self._speed(step)}"
        self._bar.update(self._task, completed=step, epoch=self._epoch(step), numbers=numbers)

    def test(self, kind: str, step: int, scalars: dict[str, float]) -> None:
        """Records an evaluation. `kind` is "test", or "averaged" if the averaged parameters were evaluated."""
        self._write(kind, step, scalars)

    def epoch(self, step: int, means: dict[str, float], accuracies: dict[str, float]) -> None:
        """Records the training metrics of an epoch and prints its line.

        Args:
          step: last step of the epoch.
          means: means of the metrics over the epoch, and the numbers of skipped steps and of images left out.
          accuracies: accuracies of the evaluations at the end of the epoch, by kind, see `test`.
        """
        self._write("epoch", step, means)
        tested = "".join(f"  {kind} accuracy {accuracy:.4f}" for kind, accuracy in accuracies.items())
        skipped = f"  {means['skipped']} steps skipped" if means["skipped"] else ""
        left_out = f"  {means['left_out']:,} left out" if means["left_out"] else ""
        numbers = f"loss {means['loss']:.4f}  accuracy {means['accuracy']:.4f}{tested}{skipped}{left_out}"
        say(self._console, f"epoch {self._epoch(step)}  {numbers}  {self._speed(step)}")

    def flush(self) -> None:
        """Writes all records to disk. To be called before a checkpoint of the same step is saved."""
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
