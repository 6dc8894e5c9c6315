"""How far a run is and when it will be done: a bar on a terminal, a line now and then elsewhere."""

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from arcdist.tracking.log import console as shared_console


def progress_line(done: int, total: int, elapsed: float, label: str, note: str, *, before: int = 0) -> str:
    """One line of progress: the share done, the time taken and, at the same pace, the time left (in seconds).

    `before` steps were done when the time began.
    """
    left = timedelta(seconds=round(elapsed / (done - before) * (total - done))) if done > before else "?"
    parts = (label, f"{done}/{total}", f"{done / total:.0%}", f"{timedelta(seconds=round(elapsed))} passed")
    return ", ".join(part for part in (*parts, f"{left} left", note) if part)


class ProgressBar:
    """Counts to `total` steps; a context manager.

    On a terminal it is one bar at the bottom of the shared console. Elsewhere it prints a line when `interval` seconds
    have passed since the last, and one at the end. `quiet` prints nothing. `done` steps were taken by an earlier run.
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
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )
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

    def _print_when_due(self, steps: int) -> None:
        now = time.monotonic()
        finished = steps > 0 and self._done == self.total
        if finished or now - self._printed >= self.interval:
            self._printed = now
            elapsed = now - self._start
            line = progress_line(self._done, self.total, elapsed, self._label, self._note, before=self._before)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
