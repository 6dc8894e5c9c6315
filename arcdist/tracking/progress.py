"""How far a run is and when it will be done: a bar on a terminal, a line now and then elsewhere."""

import importlib.util
import multiprocessing
import time
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType

from rich.console import Console, ConsoleOptions
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
from rich.table import Column
from rich.text import Text

from arcdist.tracking.log import console as shared_console
from arcdist.tracking.phases import PhaseLines, is_long

_BESIDE_THE_BAR = 88
"""Columns of the terminal that the texts take."""
_WIDE = 110
"""From how many columns on there is room for the time taken as well."""
_PACE_SECONDS = 600.0
"""What the time left is judged by: a step of a large model may take a minute."""


def progress_line(done: int, total: int, elapsed: float, label: str, note: str, *, before: int = 0) -> str:
    """One line of progress: the share done, the time taken and, at the same pace, the time left (in seconds).

    `before` steps were done when the time began.
    """
    left = timedelta(seconds=round(elapsed / (done - before) * (total - done))) if done > before else "?"
    parts = (label, f"{done}/{total}", f"{done / total:.0%}", f"{timedelta(seconds=round(elapsed))} passed")
    return ", ".join(part for part in (*parts, f"{left} left", note) if part)


class ProgressBar:
    """Counts to `total` steps; a context manager.

    On a terminal, and in a notebook that has widgets, it is one bar on the shared console. Elsewhere it prints a line
    when `interval` seconds have passed since the last, and one at the end. `quiet` prints nothing. `done` steps were
    taken by an earlier run.
    """

    def __init__(
        self, total: int, *, done: int = 0, interval: float = 30.0, quiet: bool = False, console: Console | None = None
    ) -> None:
        self.total = total
        self.interval = interval
        self.quiet = quiet
        self._console = console or shared_console()
        self._done = self._before = done
        self._label = ""
        self._note = ""
        self._start = self._printed = time.monotonic()
        self._phase_lines = PhaseLines(self._console)
        self._bar: Progress | None = None
        if _can_draw(self._console) and not quiet:
            self._bar = Progress(*_columns(self._console.width), console=self._console)
            self._bar.speed_estimate_period = _PACE_SECONDS
            self._task = self._bar.add_task("", total=total, completed=done, note="")

    def __enter__(self) -> "ProgressBar":
        self._start = self._printed = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1, *, label: str | None = None, note: str | None = None) -> None:
        """Count `steps` more (0 changes the texts only); `label` stands before the bar, `note` after it."""
        self._done += steps
        self._label = self._label if label is None else label
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, description=self._label, note=self._note)
        elif not self.quiet:
            self._print_when_due(steps)

    def tell_phase(self, doing: str, seconds: float) -> None:
        """Show what is being done besides training, and for how long, once that takes long; from any thread."""
        if self._bar is not None:
            label = f"{doing} {seconds:.0f} s" if is_long(doing, seconds) else self._label
            self._bar.update(self._task, description=label)
        elif not self.quiet:
            self._phase_lines(doing, seconds)

    def _print_when_due(self, steps: int) -> None:
        now = time.monotonic()
        finished = steps > 0 and self._done == self.total
        if finished or now - self._printed >= self.interval:
            self._printed = now
            elapsed = now - self._start
            line = progress_line(self._done, self.total, elapsed, self._label, self._note, before=self._before)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _can_draw(console: Console) -> bool:
    """Whether a bar can be drawn over itself: in a notebook by widgets, where there are any, of its own process.

    The processes that `accelerate.notebook_launcher` forks have none; what they print arrives.
    """
    if console.is_jupyter:
        return multiprocessing.parent_process() is None and importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


def _columns(width: int) -> list[ProgressColumn]:
    """What stands beside each other. Where the terminal is narrow, the note gives way, and nothing else is cut."""
    room = width - _BESIDE_THE_BAR - (8 if width >= _WIDE else 0)

    def whole() -> Column:
        return Column(no_wrap=True)

    return [
        TextColumn("{task.description}", markup=False, table_column=whole()),
        BarColumn(max(5, min(40, room)), table_column=whole()),
        MofNCompleteColumn(table_column=whole()),
        *([TimeElapsedColumn(table_column=whole())] if width >= _WIDE else []),
        TextColumn("ETA", table_column=whole()),
        TimeRemainingColumn(table_column=whole()),
        _NoteColumn(),
    ]


class _NoteColumn(ProgressColumn):
    def render(self, task: Task) -> "_Parts":
        return _Parts(task.fields["note"])


class _Parts:
    """As many of the parts of a text, which commas separate, as there is room for."""

    def __init__(self, text: str) -> None:
        self._parts = text.split(", ")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, len(", ".join(self._parts)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        shown = self._parts
        while shown and len(", ".join(shown)) > options.max_width:
            shown = shown[:-1]
        yield Text(", ".join(shown), no_wrap=True)
