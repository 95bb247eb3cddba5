"""Measured rows in files: read, merged with what is there already, written as JSON, CSV and Markdown."""

import csv
import datetime
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from flaxcnn.atomic import write_whole
from flaxcnn.errors import UserError

Row = dict[str, Any]


class Records:
    """The rows of a JSON file, told apart by some of their keys.

    Attributes:
      rows: in the order in which they were first measured.
    """

    def __init__(self, path: Path, keys: Sequence[str], hardware: dict[str, Any]):
        """Reads the file, if there is one.

        Raises:
          UserError: its rows are of another machine.
        """
        self._path, self._keys, self._hardware = path, tuple(keys), hardware
        self.rows: list[Row] = []
        if path.exists():
            content = json.loads(path.read_text())
            if content["hardware"] != hardware:
                raise UserError(
                    f"{path} is of {content['hardware']}, and this is {hardware}; take another --output"
                )
            self.rows = content["rows"]

    def has(self, row: Row, revision: str) -> bool:
        """Returns whether a row was measured, without a failure, at this very state of the sources."""
        if revision == "unknown" or revision.endswith("-dirty"):
            return False
        known = [known for known in self.rows if self._key(known) == self._key(row) and "failed" not in known]
        return [row["revision"] for row in known] == [revision]

    def add(self, rows: Sequence[Row], revision: str) -> None:
        """Puts rows in, figures to five digits, in the place of those with the same keys, and writes the file."""
        today = datetime.date.today().isoformat()
        places = {self._key(row): place for place, row in enumerate(self.rows)}
        for row in rows:
            row = {**_rounded(row), "revision": revision, "date": today}
            if (place := places.get(self._key(row))) is None:
                self.rows.append(row)
            else:
                self.rows[place] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        write_whole(self._path, f'{{"hardware": {json.dumps(self._hardware)},\n"rows": [\n{lines}\n]}}\n')

    def write_csv(self) -> None:
        """Writes the rows as CSV beside the JSON; lists are joined by spaces."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with self._path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in self.rows)

    def write_markdown(self, text: str) -> None:
        """Writes a page beside the JSON: the machine, then `text`."""
        hardware = ", ".join(
            f"{value} {name}" if name == "cores" else value for name, value in self._hardware.items()
        )
        self._path.with_suffix(".md").write_text(f"{hardware}.\n\n{text}")

    def _key(self, row: Row) -> tuple:
        return tuple(row[name] for name in self._keys)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def default_output(name: str, device: str, platform: str) -> Path:
    """Returns where a machine's records lie, without ending."""
    device = "cpu" if platform == "cpu" else re.sub(r"\W+", "-", device.lower())
    return machine.ROOT / "benchmarks" / "results" / f"{name}-{device}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, whose first column is aligned to the left."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{name} {part}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
