"""The number of cores that a process may keep busy."""

import os

from flaxcnn import cores


def test_cores_are_those_of_the_affinity_and_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_CONTAINER_LIMIT", limit)
    for text, expected in (("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 6)):
        limit.write_text(text)
        assert cores.available_cores() == expected
    limit.unlink()
    assert cores.available_cores() == 6
