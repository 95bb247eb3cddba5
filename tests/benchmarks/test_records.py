"""Rows that are merged into files."""

import csv
import json
from pathlib import Path

import pytest

from benchmarks.machine import hardware
from benchmarks.records import Records
from flaxcnn.errors import UserError

MACHINE = {"cpu": "Some CPU", "cores": 2}


def test_rows_with_the_same_keys_are_replaced_and_others_kept(tmp_path):
    path = tmp_path / "deep" / "rows.json"
    Records(path, ("network",), MACHINE).add(
        [{"network": "a", "speed": [1, 2]}, {"network": "b", "speed": [3]}], "r1"
    )
    records = Records(path, ("network",), MACHINE)
    records.add([{"network": "c", "speed": [4]}, {"network": "a", "speed": [5, 6]}], "r2")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["network"], row["speed"], row["revision"]) for row in rows] == [
        ("a", [5, 6], "r2"),
        ("b", [3], "r1"),
        ("c", [4], "r2"),
    ]
    records.write_csv()
    with path.with_suffix(".csv").open() as file:
        assert [(row["network"], row["speed"]) for row in csv.DictReader(file)] == [
            ("a", "5 6"),
            ("b", "3"),
            ("c", "4"),
        ]


def test_figures_have_five_digits(tmp_path):
    path = tmp_path / "rows.json"
    row = {"network": "a", "speed": (1 / 3, 2e-7 / 3, 123456), "seconds": {"sum": 1234.5678}}
    Records(path, ("network",), MACHINE).add([row], "r1")
    (read,) = json.loads(path.read_text())["rows"]
    assert (read["speed"], read["seconds"]) == ([0.33333, 6.6667e-08, 123456], {"sum": 1234.6})


def test_a_row_counts_as_measured_at_its_own_revision_unless_it_failed(tmp_path):
    records = Records(tmp_path / "rows.json", ("network",), MACHINE)
    records.add(
        [{"network": "a"}, {"network": "b", "failed": "out of memory"}, {"network": "c", "absent": "no"}], "r1"
    )
    assert records.has({"network": "a"}, "r1")
    assert records.has({"network": "c"}, "r1")
    assert not records.has({"network": "a"}, "r2")
    assert not records.has({"network": "b"}, "r1")
    assert not records.has({"network": "d"}, "r1")
    for unsure in ("unknown", "r1-dirty"):
        records.add([{"network": "a"}], unsure)
        assert not records.has({"network": "a"}, unsure)


def test_rows_of_another_machine_are_not_mixed_in(tmp_path):
    path = tmp_path / "rows.json"
    Records(path, ("network",), MACHINE).add([{"network": "a"}], "r1")
    with pytest.raises(UserError, match="take another --output"):
        Records(path, ("network",), {**MACHINE, "cores": 4})


def test_a_gpu_names_its_machine_beside_the_cpu():
    assert list(hardware("NVIDIA X", "gpu")) == ["device", "cpu", "vectors", "cores"]
    assert list(hardware("ignored", "cpu")) == ["cpu", "vectors", "cores"]


@pytest.mark.parametrize(
    ("lines", "vectors"),
    [
        ("model name\t: Some CPU\nflags\t\t: fpu avx avx2 avx512f\n", "AVX-512"),
        ("model name\t: Some CPU\nflags\t\t: fpu avx avx2 fma\n", "AVX2"),
        ("processor\t: 0\nFeatures\t: fp asimd\n", "NEON"),
        ("model name\t: Some CPU\nflags\t\t: fpu avx2like\n", "vectors unknown"),
        ("", "vectors unknown"),
    ],
)
def test_machines_of_one_name_are_told_apart_by_their_vectors(lines, vectors, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: lines)
    assert hardware()["vectors"] == vectors
