"""Figures of a machine whose speed drifts, from a clock that is not real."""

import pytest

from benchmarks.turns import quartiles, speed_ratios, steps_for, take_turns


def test_ratios_within_turns_see_neither_that_the_machine_slows_down_nor_a_step_after_the_others():
    calls = []

    def system(name, seconds):
        def run(steps):
            is_first = not calls or calls[-1][0] != name  # after the other one: caches are cold
            calls.append((name, steps))
            slowness = 1 + (len(calls) - 1) // 4  # the same for both in a turn of two, each with a step to warm up
            return slowness * seconds * steps + 10 * is_first

        return run

    runs = {"ours": system("ours", 0.1), "peer": system("peer", 0.25)}
    found = take_turns(runs, {"ours": 5, "peer": 2}, turns=8)
    assert found["ours"] == pytest.approx([0.1 * slowness for slowness in range(1, 9)])
    assert speed_ratios(found["ours"], found["peer"]) == pytest.approx((2.5, 2.5, 2.5))
    warm_ups, measured = calls[::2], calls[1::2]
    assert [(name, 1) for name, _ in measured] == warm_ups
    turns = [tuple(name for name, _ in measured[first : first + 2]) for first in range(0, 16, 2)]
    assert {frozenset(turn) for turn in turns} == {frozenset(runs)}  # each once a turn
    assert len(set(turns)) == 2  # and not always in the same order
    assert set(measured) == {("ours", 5), ("peer", 2)}


@pytest.mark.parametrize(("step", "expected"), [(1e-3, 2000), (0.3, 7), (5.0, 1)])
def test_the_number_of_steps_fills_the_time(step, expected):
    assert steps_for(lambda steps: steps * step, 2.0) == expected


def test_quartiles_are_those_of_sorted_values():
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
