"""Each fault of `tests/faults.py`, as a test: the run ends like one that was left alone."""

import pytest

from tests import faults
from tests.marks import sampled

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = faults.Run(tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("data"))
    run.finish()
    return run


@pytest.fixture(scope="module")
def whole_pair(tmp_path_factory, whole):
    pair = faults.Pair(tmp_path_factory.mktemp("pair"), whole.data)
    pair.finish_both()
    return pair


@pytest.mark.parametrize("name", sampled(faults.SINGLE, every=4))
def test_a_run_survives(name, tmp_path, whole):
    outcome = faults.try_fault(name, tmp_path / "fault", whole.data, whole)
    if outcome.printed == faults.NOT_TRIED:
        pytest.skip(outcome.printed)


@pytest.mark.parametrize("name", sampled(reversed(faults.DOUBLE), every=3))
def test_two_processes_survive(name, tmp_path, whole_pair):
    faults.try_fault(name, tmp_path / "fault", whole_pair.data, whole_pair)


def test_every_fault_is_in_the_documentation():
    page = faults.PAGE.read_text()
    for fault in (faults.SINGLE | faults.DOUBLE).values():
        assert f"| {fault.__doc__} |" in page
