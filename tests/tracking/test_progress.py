import io

import pytest
from rich.console import Console

from arcdist.tracking import ProgressBar
from arcdist.tracking.progress import progress_line


def test_time_left_goes_on_at_the_same_pace():
    assert progress_line(30, 120, 60.0, "epoch 1/4", "loss 1.5") == (
        "epoch 1/4, 30/120, 25%, 0:01:00 passed, 0:03:00 left, loss 1.5"
    )


def test_time_left_is_unknown_before_the_first_step():
    assert progress_line(0, 10, 3.0, "", "") == "0/10, 0%, 0:00:03 passed, ? left"


@pytest.mark.parametrize(("interval", "lines"), [(0.0, 4), (3600.0, 1)])
def test_plain_lines_come_at_their_interval_and_at_the_end(interval, lines):
    screen = io.StringIO()
    with ProgressBar(4, interval=interval, console=Console(file=screen)) as progress:
        for step in range(4):
            progress.advance(label="epoch 1/1", note=f"loss [{step}]")
    written = screen.getvalue().splitlines()
    assert len(written) == lines
    assert written[-1].startswith("epoch 1/1, 4/4, 100%, ")
    assert written[-1].endswith("loss [3]")


def test_terminal_shows_one_bar_with_count_and_texts():
    screen = io.StringIO()
    with ProgressBar(4, console=Console(file=screen, force_terminal=True, width=120)) as progress:
        progress.advance(3, label="epoch 1/1", note="loss [1]")
        progress.advance(0, note="validation")
    shown = screen.getvalue()
    assert "3/4" in shown
    assert "ETA" in shown
    assert "epoch 1/1" in shown
    assert "validation" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_prints_nothing(terminal):
    screen = io.StringIO()
    with ProgressBar(2, quiet=True, interval=0.0, console=Console(file=screen, force_terminal=terminal)) as progress:
        progress.advance(2)
    assert screen.getvalue() == ""


def test_time_left_is_judged_by_the_steps_of_this_run_only():
    # 10 steps took a minute; 100 of 120 had been taken before.
    assert progress_line(110, 120, 60.0, "", "", before=100) == "110/120, 92%, 0:01:00 passed, 0:01:00 left"
    assert progress_line(100, 120, 3.0, "", "", before=100) == "100/120, 83%, 0:00:03 passed, ? left"
    assert progress_line(120, 120, 0.0, "", "", before=120) == "120/120, 100%, 0:00:00 passed, ? left"


def test_a_resumed_run_s_count_begins_where_the_last_one_ended():
    screen = io.StringIO()
    with ProgressBar(4, done=2, interval=0.0, console=Console(file=screen)) as progress:
        progress.advance()
        progress.advance()
    assert [line.partition(",")[0] for line in screen.getvalue().splitlines()] == ["3/4", "4/4"]
    screen = io.StringIO()
    with ProgressBar(4, done=2, console=Console(file=screen, force_terminal=True, width=120)) as progress:
        progress.advance()
    assert "3/4" in screen.getvalue()
