"""The run's log: each line in `training.log` and on the console."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from rich.console import Console, RenderableType
from rich.logging import RichHandler

from arcdist.errors import ArcdistError
from arcdist.standard_error import standard_error

_logger = logging.getLogger("arcdist")
_FILE_ONLY = {"file_only": True}
_FILE_WIDTH = 100


@cache
def console() -> Console:
    """The console on stderr that log lines, progress bar and tables share, so that none overwrites another.

    What a notebook runs as `!command` is given a terminal that cannot move its cursor: it is none.
    """
    below_a_notebook = "JPY_PARENT_PID" in os.environ
    return Console(file=standard_error, force_terminal=False if below_a_notebook else None)


@contextmanager
def open_log(run_dir: Path, quiet: bool = False) -> Iterator[logging.Logger]:
    """Send what arcdist logs to `run_dir/training.log` and to the console while the block runs.

    On a terminal lines are coloured and stay above the progress bar; elsewhere they are plain. `quiet` keeps the
    console to warnings. An error that leaves the block is noted in the file: the caller shows it on the console.
    """
    file = _LogFile(run_dir / "training.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = _console_handler()
    screen.addFilter(lambda record: not getattr(record, "file_only", False))
    screen.setLevel(logging.WARNING if quiet else logging.INFO)
    level, propagate = _logger.level, _logger.propagate
    _logger.setLevel(logging.INFO)
    # The root logger's handlers, which some libraries install, would print each line a second time.
    _logger.propagate = False
    for handler in (file, screen):
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
        for handler in (file, screen):
            _logger.removeHandler(handler)
            handler.close()
        _logger.setLevel(level)
        _logger.propagate = propagate


@contextmanager
def no_log() -> Iterator[None]:
    """Keep what arcdist logs to itself while the block runs: process 0 says the same."""
    propagate, silence = _logger.propagate, logging.NullHandler()
    _logger.propagate = False
    _logger.addHandler(silence)
    try:
        yield
    finally:
        _logger.removeHandler(silence)
        _logger.propagate = propagate


def log_table(table: RenderableType, quiet: bool = False) -> None:
    """Show a table on the console, unless `quiet`, and write it into `training.log` as text."""
    if not quiet:
        console().print(table)
    _logger.info("\n%s", table_text(table).rstrip("\n"), extra=_FILE_ONLY)


def table_text(table: RenderableType) -> str:
    """A table as lines of plain text, as they stand in a file."""
    text = io.StringIO()
    Console(file=text, width=_FILE_WIDTH, color_system=None).print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


class _LogFile(logging.FileHandler):
    """A file that may miss lines while its disk is full; the console has them."""

    def handleError(self, record: logging.LogRecord) -> None:  # logging's own name
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _console_handler() -> logging.Handler:
    if console().is_terminal:
        return RichHandler(console=console(), show_path=False, log_time_format="%X")
    plain = logging.StreamHandler(console().file)
    plain.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return plain
