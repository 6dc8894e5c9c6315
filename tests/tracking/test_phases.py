import io

import pytest
from rich.console import Console

from arcdist.tracking import PhaseLines


@pytest.fixture
def told():
    """Have phases told, as (what, seconds); returns the lines."""
    screen = io.StringIO()
    lines = PhaseLines(Console(file=screen))

    def tell(*phases):
        for doing, seconds in phases:
            lines(doing, seconds)
        return screen.getvalue().splitlines()

    return tell


def test_a_long_phase_is_told_after_ten_seconds_and_again_every_thirty(told):
    lines = told(*(("loading weights", float(second)) for second in range(101)))
    assert lines == [f"loading weights: {second} s" for second in (10, 40, 70, 100)]


def test_short_phases_and_training_are_not(told):
    assert told(*(("validating", second / 2) for second in range(20)), ("training", 600.0), ("validating", 9.9)) == []


def test_each_phase_is_told_anew(told):
    assert told(
        ("reading tasks", 12.0), ("loading weights", 11.0), ("loading weights", 12.0), ("saving", 0.4),
        ("validating", 45.0), ("validating", 3.0), ("validating", 14.0),
    ) == ["reading tasks: 12 s", "loading weights: 11 s", "validating: 45 s", "validating: 14 s"]  # fmt: skip
