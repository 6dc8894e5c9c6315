"""Log lines, phases, progress and the last table, on terminals, in files and in notebooks."""

import importlib.util
import io
import logging
import multiprocessing
import re
from pathlib import Path

import pytest
from rich import jupyter
from rich.console import Console
from rich.table import Table

from arcdist.errors import ConfigError
from arcdist.tracking import MovingPace, PhaseLines, ProgressBar, epoch_table, log_table, no_log, open_log
from arcdist.tracking import console as console_module
from arcdist.tracking.console import shared_console


@pytest.mark.parametrize(
    ("queries", "tokens", "shown"),
    [
        (1, 3, "0.5 q/s, 1.5 tok/s"),
        (20, 2_000, "10 q/s, 1000 tok/s"),
        (256, 82_000, "128 q/s, 41k tok/s"),
        (19_000, 2_400_000, "9500 q/s, 1.2M tok/s"),
        (19_990, 1_999_000, "10k q/s, 1.0M tok/s"),
    ],
)
def test_the_pace_is_shown_in_few_characters(queries, tokens, shown):
    pace = MovingPace()
    assert str(pace) == ""
    pace.add(queries, tokens, 2.0)
    assert str(pace) == shown
    assert pace.seconds == 2.0


def test_it_is_a_mean_over_time_not_over_steps():
    pace = MovingPace()
    pace.add(10, 1000, 1.0)
    pace.add(10, 3000, 3.0)
    assert str(pace) == "5.0 q/s, 1000 tok/s"
    assert pace.seconds == 3.0


def test_only_the_last_twenty_steps_count():
    pace = MovingPace()
    pace.add(0, 0, 1000.0)
    for _ in range(20):
        pace.add(64, 6400, 2.0)
    assert str(pace) == "32 q/s, 3200 tok/s"


@pytest.fixture
def terminal(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(console_module, "shared_console", lambda: screen)
    return screen.file


def test_lines_go_to_file_and_console(tmp_path, capsys):
    with open_log(tmp_path) as logger:
        logger.info("epoch %d", 3)
        logging.getLogger("arcdist.training.health").warning("red flag")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO epoch 3\n\S+ \S+ WARNING red flag\n",
        (tmp_path / "training.log").read_text(),
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d epoch 3\n\d\d:\d\d:\d\d red flag\n", capsys.readouterr().err)


def test_terminal_lines_carry_no_markup(tmp_path, terminal):
    with open_log(tmp_path) as logger:
        logger.info("loss [1/3] 0.5")
    assert re.search(r"INFO +loss \[1/3\] 0\.5", terminal.getvalue())


def test_the_logger_is_left_as_it_was_found(tmp_path):
    logger = logging.getLogger("arcdist")
    before = (list(logger.handlers), logger.level, logger.propagate)
    with open_log(tmp_path):
        assert len(logger.handlers) == len(before[0]) + 2
    assert (logger.handlers, logger.level, logger.propagate) == before


@pytest.mark.parametrize(
    ("error", "noted"),
    [
        (ConfigError("train.epochs is 0"), "ERROR ConfigError: train.epochs is 0\n"),
        (KeyboardInterrupt(), "INFO Ended by Ctrl-C.\n"),
        (ZeroDivisionError("by zero"), "Traceback"),
    ],
)
def test_what_ends_the_run_is_noted_in_the_file_only(tmp_path, capsys, error, noted):
    with pytest.raises(type(error)), open_log(tmp_path):
        raise error
    assert noted in (tmp_path / "training.log").read_text()
    assert capsys.readouterr().err == ""


def test_table_is_shown_and_kept_as_text(tmp_path, capsys):
    table = Table("score", "value")
    table.add_row("exact", "3.47 %")
    with open_log(tmp_path):
        log_table(table)
    assert capsys.readouterr().err.count("3.47 %") == 1
    assert (tmp_path / "training.log").read_text().count("3.47 %") == 1


def test_without_a_log_nothing_is_said_and_all_is_as_before_afterwards(capsys, caplog):
    logger = logging.getLogger("arcdist")
    before = (logger.propagate, list(logger.handlers), logger.level)
    with no_log():
        logging.getLogger("arcdist.training.loop").warning("what process 0 says as well")
    assert (logger.propagate, list(logger.handlers), logger.level) == before
    with pytest.raises(ConfigError), no_log():
        raise ConfigError("reported by the caller")
    assert (logger.propagate, list(logger.handlers), logger.level) == before
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


@pytest.fixture
def reported():
    """Report phases, as (what, seconds); returns the lines."""
    screen = io.StringIO()
    lines = PhaseLines(Console(file=screen))

    def tell(*phases):
        for doing, seconds in phases:
            lines(doing, seconds)
        return screen.getvalue().splitlines()

    return tell


def test_a_long_phase_is_reported_after_ten_seconds_and_again_every_thirty(reported):
    lines = reported(*(("loading weights", float(second)) for second in range(101)))
    assert lines == [f"loading weights: {second} s" for second in (10, 40, 70, 100)]


def test_short_phases_and_training_are_not(reported):
    assert (
        reported(*(("validating", second / 2) for second in range(20)), ("training", 600.0), ("validating", 9.9)) == []
    )


def test_each_phase_is_reported_by_itself(reported):
    assert reported(
        ("reading tasks", 12.0), ("loading weights", 11.0), ("loading weights", 12.0), ("saving", 0.4),
        ("validating", 45.0), ("validating", 3.0), ("validating", 14.0),
    ) == ["reading tasks: 12 s", "loading weights: 11 s", "validating: 45 s", "validating: 14 s"]  # fmt: skip


class Clock:
    """What a console takes the time from."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize(
    ("steps", "total", "before", "seconds", "texts", "line"),
    [
        (30, 120, 0, 60, ("epoch 1/4", "loss 1.5"), "epoch 1/4, 30/120, 25%, 0:01:00 passed, 0:03:00 left, loss 1.5"),
        (0, 10, 0, 3, ("", ""), "0/10, 0%, 0:00:03 passed, ? left"),
        # 10 steps took a minute; 100 of 120 had been taken before.
        (10, 120, 100, 60, ("", ""), "110/120, 92%, 0:01:00 passed, 0:01:00 left"),
        (0, 120, 100, 3, ("", ""), "100/120, 83%, 0:00:03 passed, ? left"),
        (0, 120, 120, 0, ("", ""), "120/120, 100%, 0:00:00 passed, ? left"),
    ],
)
def test_a_line_has_the_time_left_at_the_pace_of_the_steps_of_this_run(
    clock, steps, total, before, seconds, texts, line
):
    screen = io.StringIO()
    console = Console(file=screen, get_time=clock)
    with ProgressBar(total, done=before, interval=0.0, console=console) as progress:
        clock.now += seconds
        progress.advance(steps, label=texts[0], note=texts[1])
    assert screen.getvalue() == f"{line}\n"


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


def test_what_is_counted_may_have_a_unit():
    screen = io.StringIO()
    with ProgressBar(300, unit=" s", interval=0.0, console=Console(file=screen)) as progress:
        progress.advance(30)
        assert progress.done == 30
    assert screen.getvalue().startswith("30/300 s, 10%, ")
    screen = io.StringIO()
    with ProgressBar(300, unit=" s", console=Console(file=screen, force_terminal=True, width=120)) as progress:
        progress.advance(30)
    assert " 30/300 s" in screen.getvalue()


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


def frames(screen):
    """What a terminal has shown, each time as its lines."""
    drawn = re.sub(r"\x1b\[\?25[hl]", "", screen.getvalue()).split("\x1b[2K")
    return [frame.strip("\r\n").split("\n") for frame in drawn]


def last_shown(width, *, label, note, done=120, total=4567, phase=None):
    """What a terminal of that width shows when two steps of 1.7 s each have been taken."""
    screen, clock = io.StringIO(), Clock()
    console = Console(
        file=screen, force_terminal=True, width=width, color_system=None, legacy_windows=False, get_time=clock
    )
    with ProgressBar(total, done=done - 2, console=console) as bar:
        for _ in range(2):
            bar.advance(label=label, note=note)
            clock.now += 1.7
        if phase:
            bar.show_phase(*phase)
    return frames(screen)[-1]


NOTE = "loss 1.23, exact 12%, 128 q/s, 41k tok/s"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, r"epoch 0 .* 120/4567 ETA \d:\d\d:\d\d loss 1\.23, exact 12%"),
        (80, r"epoch 0 .* 120/4567 ETA \d:\d\d:\d\d loss 1\.23, exact 12%, 128 q/s, 41k tok/s"),
        (120, r"epoch 0 .* 120/4567 \d:\d\d:\d\d ETA \d:\d\d:\d\d loss 1\.23, exact 12%, 128 q/s, 41k tok/s"),
    ],
)
def test_the_bar_is_one_line_on_every_terminal_and_the_note_gives_way_in_whole_parts(width, shown):
    (line,) = last_shown(width, label="epoch 0", note=NOTE)
    assert len(line) <= width
    assert re.fullmatch(shown, line.rstrip())


def test_large_numbers_leave_the_time_left_whole():
    note = "loss 0.0123, exact 100%, 1284 q/s, 1.4M tok/s"
    (line,) = last_shown(80, label="epoch 12", note=note, done=11_234, total=123_450)
    assert re.search(r"11234/123450 ETA \d\d:\d\d:\d\d loss 0\.0123, exact 100%, 1284 q/s *$", line)


def test_a_long_phase_takes_the_place_of_the_label():
    (line,) = last_shown(80, label="epoch 0", note=NOTE, phase=("finishing the checkpoint", 45.4))
    assert re.match(r"finishing the checkpoint 45 s .*120/4567 ETA \d:\d\d:\d\d loss 1\.23", line)
    (line,) = last_shown(80, label="epoch 0", note=NOTE, phase=("training", 45.4))
    assert line.startswith("epoch 0 ")


def test_without_a_terminal_a_long_phase_is_a_line():
    screen = io.StringIO()
    with ProgressBar(4, console=Console(file=screen)) as progress:
        for second in range(41):
            progress.show_phase("validating", float(second))
    assert screen.getvalue() == "validating: 10 s\nvalidating: 40 s\n"
    with ProgressBar(4, quiet=True, console=Console(file=screen)) as progress:
        progress.show_phase("validating", 100.0)
    assert screen.getvalue() == "validating: 10 s\nvalidating: 40 s\n"


def test_the_time_left_is_known_where_a_step_takes_a_minute(clock):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None, get_time=clock)
    with ProgressBar(10, console=console) as progress:
        for _ in range(4):
            progress.advance()
            clock.now += 60.0
        progress.advance()
    assert "5/10 ETA 0:05:00" in frames(screen)[-1][0]


@pytest.mark.parametrize(
    ("widgets", "forked", "shows_bar"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_a_notebook_shows_the_bar_where_it_has_widgets_and_has_not_forked(monkeypatch, widgets, forked, shows_bar):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object() if forked else None)
    lines = []
    monkeypatch.setattr(jupyter, "display", lambda segments, text: lines.append(text))
    notebook = Console(file=io.StringIO(), force_jupyter=True)
    assert not notebook.is_terminal
    ProgressBar(1, console=notebook).advance()
    assert lines == ([] if shows_bar else ["1/1, 100%, 0:00:00 passed, 0:00:00 left\n"])


@pytest.fixture
def new_console():
    shared_console.cache_clear()
    yield
    shared_console.cache_clear()


@pytest.mark.parametrize(("variable", "is_terminal"), [("JPY_PARENT_PID", False), ("FORCE_COLOR", True)])
def test_what_a_notebook_starts_has_no_terminal(monkeypatch, new_console, variable, is_terminal):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's own way to say that there is one
    monkeypatch.setenv(variable, "1")
    assert shared_console().is_terminal is is_terminal


def rows(renderable):
    text = io.StringIO()
    Console(file=text, width=100).print(renderable)
    return [line.strip() for line in text.getvalue().splitlines() if line.strip()]


def cells(row):
    return [cell.strip() for cell in row.split("  ") if cell.strip()]


def test_scores_are_beside_the_floor():
    last = {
        "epoch": 4, "val/exact": 0.0347, "val/cell": 0.8, "val/size": 0.9, "val/accuracy_delta": 0.0012,
        "train/exact": 0.25, "floor/copy_exact": 0.0, "floor/copy_cell": 0.712,
    }  # fmt: skip
    best = {"metric": "val/exact", "epoch": 3, "val/exact": 0.04, "val/cell": 0.79, "val/accuracy_delta": -0.01}
    table = rows(epoch_table(last, best, {"run folder": Path("runs/a"), "plot": Path("runs/a/metrics_plot.png")}))
    assert cells(table[0]) == ["validation", "epoch 4", "best: epoch 3", "copying the input"]
    assert [cells(row) for row in table[2:7]] == [
        ["exact grids", "3.47 %", "4.00 %", "0.00 %"],
        ["cells", "80.00 %", "79.00 %", "71.20 %"],
        ["grid sizes", "90.00 %", "–", "–"],
        ["exact grids in training", "25.00 %", "–", "–"],
        ["cells gained by refinement", "+0.12 %", "-1.00 %", "–"],
    ]
    assert [cells(row) for row in table[7:]] == [["run folder", "runs/a"], ["plot", "runs/a/metrics_plot.png"]]


def test_a_run_without_validation_shows_dashes():
    table = rows(epoch_table({"epoch": 0}, {}, {}))
    assert cells(table[0]) == ["validation", "epoch 0", "best", "copying the input"]
    assert cells(table[2]) == ["exact grids", "–", "–", "–"]


def test_long_paths_are_shown_whole():
    path = "/".join(["folder"] * 20)
    table = rows(epoch_table({"epoch": 0}, {}, {"run folder": Path(path)}))
    assert "".join(table[7:]).replace(" ", "").removeprefix("runfolder") == path
