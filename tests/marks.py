"""Marks for tests that go over every network or recipe."""

import pytest


def sampled(cases, *, every):
    """Marks cases as slow, and all but every so manieth as exhaustive: too many for each change."""
    marks = [(pytest.mark.slow,), (pytest.mark.slow, pytest.mark.exhaustive)]
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks[bool(number % every)])
        for number, case in enumerate(cases)
    ]
