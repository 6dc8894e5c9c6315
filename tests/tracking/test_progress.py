import importlib.util
import io
import multiprocessing
import re

import pytest
from rich.console import Console

from arcdist.tracking import ProgressBar, log, progress
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


def set_clock(bar, clock):
    bar._bar.get_time = clock
    for task in bar._bar.tasks:
        task._get_time = clock
    return bar._bar.tasks


def last_shown(width, *, label, note, done=120, total=4567, phase=None):
    """What stands on a terminal of that width when two steps of 1.7 s each have been taken."""
    screen, clock = io.StringIO(), 0.0
    console = Console(file=screen, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    bar = ProgressBar(total, done=done - 2, console=console)
    set_clock(bar, lambda: clock)
    with bar:
        for _ in range(2):
            bar.advance(label=label, note=note)
            clock += 1.7
        if phase:
            bar.tell_phase(*phase)
    frame = re.sub(r"\x1b\[\?25[hl]", "", screen.getvalue()).rpartition("\x1b[2K")[2]
    return frame.strip("\r\n").split("\n")


NOTE = "loss 1.23, exact 12%, 128 pairs/s, 41k tok/s"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, r"epoch 0 .* 120/4567 ETA \d:\d\d:\d\d loss 1\.23, exact 12%"),
        (80, r"epoch 0 .* 120/4567 ETA \d:\d\d:\d\d loss 1\.23, exact 12%, 128 pairs/s, 41k tok/s"),
        (120, r"epoch 0 .* 120/4567 \d:\d\d:\d\d ETA \d:\d\d:\d\d loss 1\.23, exact 12%, 128 pairs/s, 41k tok/s"),
    ],
)
def test_the_bar_is_one_line_on_every_terminal_and_the_note_gives_way_in_whole_parts(width, shown):
    (line,) = last_shown(width, label="epoch 0", note=NOTE)
    assert len(line) <= width
    assert re.fullmatch(shown, line.rstrip())


def test_large_numbers_leave_the_time_left_whole():
    note = "loss 0.0123, exact 100%, 1284 pairs/s, 1.4M tok/s"
    (line,) = last_shown(80, label="epoch 12", note=note, done=11_234, total=123_450)
    assert re.search(r"11234/123450 ETA \d\d:\d\d:\d\d loss 0\.0123, exact 100%, 1284 pairs/s *$", line)


def test_a_long_phase_stands_in_the_place_of_the_label():
    (line,) = last_shown(80, label="epoch 0", note=NOTE, phase=("finishing the checkpoint", 45.4))
    assert re.match(r"finishing the checkpoint 45 s .*120/4567 ETA \d:\d\d:\d\d loss 1\.23", line)
    (line,) = last_shown(80, label="epoch 0", note=NOTE, phase=("training", 45.4))
    assert line.startswith("epoch 0 ")


def test_without_a_terminal_a_long_phase_is_a_line():
    screen = io.StringIO()
    with ProgressBar(4, console=Console(file=screen)) as progress:
        for second in range(41):
            progress.tell_phase("validating", float(second))
    assert screen.getvalue() == "validating: 10 s\nvalidating: 40 s\n"
    with ProgressBar(4, quiet=True, console=Console(file=screen)) as progress:
        progress.tell_phase("validating", 100.0)
    assert screen.getvalue() == "validating: 10 s\nvalidating: 40 s\n"


def test_the_time_left_is_known_where_a_step_takes_a_minute():
    clock = 0.0
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with ProgressBar(10, console=console) as progress:
        (task,) = set_clock(progress, lambda: clock)
        for _ in range(4):
            progress.advance()
            clock += 60.0
        progress.advance()
        assert task.time_remaining == 5 * 60


@pytest.mark.parametrize(
    ("widgets", "forked", "shows_bar"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_a_notebook_shows_the_bar_where_it_has_widgets_and_has_not_forked(monkeypatch, widgets, forked, shows_bar):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object() if forked else None)
    notebook = Console(file=io.StringIO(), force_jupyter=True)
    assert not notebook.is_terminal
    assert progress._can_draw(notebook) is shows_bar


def test_what_a_notebook_starts_has_no_terminal(monkeypatch):
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert log.console.__wrapped__().is_terminal is False
    monkeypatch.delenv("JPY_PARENT_PID")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's own way to say that there is one
    assert log.console.__wrapped__().is_terminal is True
