"""What a run shows while it trains: log lines, phases, progress, and the table that it ends with."""

import importlib.util
import io
import logging
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.logging import RichHandler
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from arcdist.cli import standard_error
from arcdist.errors import ArcdistError
from arcdist.formatting import percent

_FILE_ONLY = {"file_only": True}
_PACE_STEPS = 20
_FIRST_SECONDS, _AGAIN_SECONDS = 10.0, 30.0
"""When a long phase is reported, and how often after that."""
_ESTIMATE_SECONDS = 600.0
"""What the remaining time is estimated from: a step of a large model may take a minute."""

_logger = logging.getLogger("arcdist")


@cache
def shared_console() -> Console:
    """The console on stderr that log lines, progress bar and tables share, so that none overwrites another.

    A `!command` in a notebook gets a terminal that cannot move its cursor, which counts as none.
    """
    below_a_notebook = "JPY_PARENT_PID" in os.environ
    return Console(file=standard_error, force_terminal=False if below_a_notebook else None)


@contextmanager
def open_log(run_dir: Path | None) -> Iterator[logging.Logger]:
    """Send what arcdist logs to `run_dir/training.log`, if there is a folder, and to the console while the block runs.

    On a terminal lines are coloured and stay above the progress bar; elsewhere they are plain. An error that leaves
    the block is written to the file: the caller shows it on the console.
    """
    screen = _console_handler()
    handlers = [screen]
    if run_dir is not None:
        file = _LogFile(run_dir / "training.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.insert(0, file)
    screen.addFilter(lambda record: not getattr(record, "file_only", False))
    level, propagate = _logger.level, _logger.propagate
    _logger.setLevel(logging.INFO)
    # The root logger's handlers, which some libraries install, would print each line a second time.
    _logger.propagate = False
    for handler in handlers:
        _logger.addHandler(handler)
    try:
        yield _logger
    except ArcdistError as error:
        _logger.error("%s: %s", type(error).__name__, error, extra=_FILE_ONLY)
        raise
    except KeyboardInterrupt:
        _logger.info("Ended by Ctrl-C.", extra=_FILE_ONLY)
        raise
    except Exception:
        _logger.exception("The run ended with an unexpected error.", extra=_FILE_ONLY)
        raise
    finally:
        for handler in handlers:
            _logger.removeHandler(handler)
            handler.close()
        _logger.setLevel(level)
        _logger.propagate = propagate


@contextmanager
def no_log() -> Iterator[None]:
    """Drop what arcdist logs while the block runs: process 0 logs the same."""
    propagate, silence = _logger.propagate, logging.NullHandler()
    _logger.propagate = False
    _logger.addHandler(silence)
    try:
        yield
    finally:
        _logger.removeHandler(silence)
        _logger.propagate = propagate


def log_table(table: RenderableType) -> None:
    """Show a table on the console, and write it into `training.log` as text."""
    shared_console().print(table)
    _logger.info("\n%s", table_text(table).rstrip("\n"), extra=_FILE_ONLY)


def table_text(table: RenderableType) -> str:
    """A table as lines of plain text, for a file."""
    text = io.StringIO()
    Console(file=text, width=100, color_system=None).print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


class _LogFile(logging.FileHandler):
    """A file that may miss lines while its disk is full; the console has them."""

    def handleError(self, record: logging.LogRecord) -> None:  # logging's own name
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _console_handler() -> logging.Handler:
    if shared_console().is_terminal:
        return RichHandler(console=shared_console(), show_path=False, log_time_format="%X")
    plain = logging.StreamHandler(shared_console().file)
    plain.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return plain


class MovingPace:
    """Queries and tokens a second over the last 20 steps, with their waits for data."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int, float]] = deque(maxlen=_PACE_STEPS)

    def add(self, queries: int, tokens: int, seconds: float) -> None:
        """Add a step."""
        self._steps.append((queries, tokens, seconds))

    @property
    def seconds(self) -> float:
        """The duration of the last step."""
        return self._steps[-1][2]

    def __str__(self) -> str:
        """The pace as it is shown; empty before the first step."""
        if not self._steps:
            return ""
        queries, tokens, seconds = map(sum, zip(*self._steps, strict=True))
        return f"{_short(queries / seconds)} q/s, {_short(tokens / seconds)} tok/s"


def _short(number: float) -> str:
    """In about four characters."""
    if number >= 999_500:
        return f"{number / 1e6:.1f}M"
    if number >= 9_995:
        return f"{number / 1e3:.0f}k"
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}"


class PhaseLines:
    """Prints a line such as `validating: 40 s` when a phase has lasted 10 s, and again every 30 s.

    Called repeatedly, from any thread, with the name of the phase and the seconds that it has lasted.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or shared_console()
        self._doing = ""
        self._due = _FIRST_SECONDS

    def __call__(self, doing: str, seconds: float) -> None:
        """Print what is due."""
        if doing != self._doing or seconds < _FIRST_SECONDS:
            self._doing, self._due = doing, _FIRST_SECONDS
        if _is_long(doing, seconds) and seconds >= self._due:
            self._due = seconds + _AGAIN_SECONDS
            _print_line(self._console, f"{doing}: {seconds:.0f} s")


def _is_long(doing: str, seconds: float) -> bool:
    """Whether a phase is reported; the progress bar counts the steps of training."""
    return doing != "training" and seconds >= _FIRST_SECONDS


def _print_line(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class ProgressBar:
    """Counts to `total` steps; a context manager.

    On a terminal, and in a notebook that has widgets, it is one bar on the shared console. Elsewhere it prints a line
    when `interval` seconds have passed since the last, and one at the end: the share done, the time taken and, at the
    same pace, the time left. `quiet` prints nothing. `done` steps were taken by an earlier run. A `unit` is shown after
    the counts.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        unit: str = "",
        interval: float = 30.0,
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self._total, self._unit, self._interval = total, unit, interval
        self._console = Console(quiet=True, force_terminal=False) if quiet else console or shared_console()
        self.done = self._before = done
        self._label = self._note = ""
        self._start = self._printed = self._console.get_time()
        self._phase_lines = PhaseLines(self._console)
        self._bar: Progress | None = None
        if _can_draw(self._console):
            self._bar = Progress(*_columns(self._console.width, unit), console=self._console)
            self._bar.speed_estimate_period = _ESTIMATE_SECONDS
            self._task = self._bar.add_task("", total=total, completed=done, note="")

    def __enter__(self) -> "ProgressBar":
        self._start = self._printed = self._console.get_time()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1, *, label: str | None = None, note: str | None = None) -> None:
        """Count `steps` more (0 changes the texts only); `label` is shown before the bar, `note` after it."""
        self.done += steps
        self._label = self._label if label is None else label
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, description=self._label, note=self._note)
            return
        now = self._console.get_time()
        if now - self._printed >= self._interval or (steps > 0 and self.done == self._total):
            self._printed = now
            _print_line(self._console, self._line(now - self._start))

    def show_phase(self, doing: str, seconds: float) -> None:
        """Show a phase other than training, and its seconds, once it takes long; from any thread."""
        if self._bar is not None:
            label = f"{doing} {seconds:.0f} s" if _is_long(doing, seconds) else self._label
            self._bar.update(self._task, description=label)
        else:
            self._phase_lines(doing, seconds)

    def _line(self, elapsed: float) -> str:
        taken, left = self.done - self._before, "?"
        if taken:
            left = str(timedelta(seconds=round(elapsed / taken * (self._total - self.done))))
        counts = f"{self.done}/{self._total}{self._unit}, {self.done / self._total:.0%}"
        parts = (self._label, counts, f"{timedelta(seconds=round(elapsed))} passed", f"{left} left", self._note)
        return ", ".join(filter(None, parts))


def _can_draw(console: Console) -> bool:
    """Whether a bar can be drawn over itself: on a terminal, or with widgets in a notebook's own process.

    The processes that `accelerate.notebook_launcher` forks have no widgets, but what they print is shown.
    """
    if console.is_jupyter:
        return multiprocessing.parent_process() is None and importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


def _columns(width: int, unit: str) -> list[str | ProgressColumn]:
    """The parts of the bar. On a narrow terminal the note is shortened, and nothing else is cut."""
    is_wide = width >= 110  # with room for the elapsed time as well
    bar_width = width - 88 - len(unit) - (8 if is_wide else 0)  # what the texts leave
    whole = Column(no_wrap=True)
    return [
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(max(5, min(40, bar_width)), table_column=whole),
        _CountColumn(unit, table_column=whole),
        *([TimeElapsedColumn(table_column=whole)] if is_wide else []),
        "ETA",
        TimeRemainingColumn(table_column=whole),
        _NoteColumn(),
    ]


class _CountColumn(MofNCompleteColumn):
    def __init__(self, unit: str, **options: Any) -> None:
        super().__init__(**options)
        self._unit = unit

    def render(self, task: Task) -> Text:
        return super().render(task).append(self._unit)


class _NoteColumn(ProgressColumn):
    def render(self, task: Task) -> "_Note":
        return _Note(task.fields["note"])


class _Note:
    """As many of a text's parts, which are separated by commas, as there is room for."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, len(self._text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        shown = self._text
        while len(shown) > options.max_width:
            shown = shown.rpartition(", ")[0]
        yield Text(shown, no_wrap=True)


def epoch_table(epoch: Mapping[str, Any], best: Mapping[str, Any], outputs: Mapping[str, Path]) -> RenderableType:
    """Scores of an epoch, of the best one and of copying the input, in percent; below, each output and its path.

    `epoch` and `best` are records of `metrics.json`; what they lack is shown as a dash.
    """
    scores = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    scores.add_column("validation")
    scores.add_column(f"epoch {epoch['epoch']}", justify="right")
    scores.add_column(f"best: epoch {best['epoch']}" if best else "best", justify="right", style="bold")
    scores.add_column("copying the input", justify="right")
    for name, key, floor in (
        ("exact grids", "val/exact", "floor/copy_exact"),
        ("cells", "val/cell", "floor/copy_cell"),
        ("grid sizes", "val/size", ""),
        ("exact grids in training", "train/exact", ""),
    ):
        scores.add_row(name, percent(epoch.get(key)), percent(best.get(key)), percent(epoch.get(floor)))
    gains = (percent(scored.get("val/accuracy_delta"), "+") for scored in (epoch, best, {}))
    scores.add_row("cells gained by refinement", *gains)

    paths = Table.grid(padding=(0, 2))
    paths.add_column()
    paths.add_column(overflow="fold")
    for name, path in outputs.items():
        paths.add_row(name, str(path))
    return Group(scores, paths)
