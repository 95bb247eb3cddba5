"""A verb of `flaxcnn`, run in this process, and what it prints and writes."""

import csv
import io
import json
import re

from flaxcnn.commands.main import main


def run(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def right_of(out):
    """(right, evaluated) of what evaluate prints."""
    return tuple(int(number) for number in re.search(r"\((\d+) of (\d+) right", out).groups())


def read_rows(path):
    """The lines of a file of predictions, those of CSV brought into the shape of JSON's."""
    text = path.read_bytes().decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    rows = []
    for row in csv.DictReader(io.StringIO(text)):
        ranks = [name.removeprefix("class_") for name in row if name.startswith("class_")]
        classes = [row.pop(f"class_{rank}") for rank in ranks]
        probabilities = [float(row.pop(f"probability_{rank}")) for rank in ranks]
        rows.append({**row, "classes": classes, "probabilities": probabilities})
    return rows
