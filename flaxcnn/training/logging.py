"""What a run leaves on the screen and on disk while it goes: progress, metrics.jsonl, TensorBoard events."""

import datetime
import json
import math
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import tensorboardX

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends records to `metrics.jsonl` and to TensorBoard event files.

    A record is a flat dict with `kind` ("interval", "epoch" or "test"), `step` and `epoch`. When a run continues
    from step S, records of later steps are dropped first, so that the file ends up as if nothing had happened.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        self._path = workdir / METRICS_FILE
        kept = [record for record in read_metrics(workdir) if record["step"] <= start_step and start_step]
        temporary = self._path.with_name(METRICS_FILE + ".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(self._path)
        self._file = self._path.open("a")
        self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1 if start_step else None)

    def write(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one record."""
        self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

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


class Progress:
    """The run on the screen: a moving bar on a terminal, and one line an epoch in any case."""

    def __init__(self, console: rich.console.Console, *, total_steps: int, steps_per_epoch: int, start_step: int):
        self._console = console
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._rate = 0.0
        columns = (
            rich.progress.TextColumn("epoch {task.fields[epoch]}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("{task.fields[numbers]}"),
        )
        self._bar = rich.progress.Progress(
            *columns, console=console, transient=True, expand=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task(
            "", total=total_steps, completed=start_step, epoch=self._epoch(start_step), numbers="compiling"
        )
        self._bar.start()

    def update(self, step: int, *, loss: float, accuracy: float, images_per_second: float, steps_per_second: float):
        """Moves the bar to a step."""
        self._rate = steps_per_second
        numbers = (
            f"loss {loss:.4f}  accuracy {accuracy:.4f}  {images_per_second:,.0f} images/s  eta {self._eta(step)}"
        )
        self._bar.update(self._task, completed=step, epoch=self._epoch(step), numbers=numbers)

    def end_epoch(self, step: int, *, loss: float, accuracy: float, images_per_second: float, test: float | None):
        """Prints the line of a finished epoch."""
        tested = "" if test is None else f"  test accuracy {test:.4f}"
        self.say(
            f"epoch {self._epoch(step)}  loss {loss:.4f}  accuracy {accuracy:.4f}{tested}  "
            f"{images_per_second:,.0f} images/s  eta {self._eta(step)}"
        )

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def _epoch(self, step: int) -> str:
        width = len(str(math.ceil(self._total / self._per_epoch)))
        return f"{min(math.ceil(step / self._per_epoch) or 1, 10**9):>{width}}/{math.ceil(self._total / self._per_epoch)}"

    def _eta(self, step: int) -> str:
        if not self._rate:
            return "-:--:--"
        return str(datetime.timedelta(seconds=round((self._total - step) / self._rate)))
