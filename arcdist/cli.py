"""What command-line programs share: streams that nobody reads, mistakes in one line, quick imports."""

import argparse
import errno
import gc
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from arcdist.errors import ConfigError, reason

_logger = logging.getLogger(__name__)

_PERMANENT = (errno.EPIPE, errno.EIO, errno.ENXIO)
"""The reader or the terminal is gone; after any other failure there may be room again."""


class OutputClosed(Exception):
    """The reader of standard output has gone. `exit_code` is what a shell shows of a program that SIGPIPE ends."""

    exit_code = 141


def is_output_closed() -> bool:
    """Whether something was printed that can no longer be delivered; it is then discarded, with all that follows."""
    if sys.stdout is None:  # closed before the program began
        return False
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return True
    except OSError:  # a full disk, which Python reports at its end
        return False
    return False


def ends_quietly(error: BaseException) -> bool:
    """Whether a program ended because its output was closed. A pipe to anything else that breaks is an error."""
    closed = is_output_closed()
    if isinstance(error, SystemExit):
        # rich meets the closed pipe itself and exits; help is printed, and the program exits, before it is delivered.
        return closed or isinstance(error.__context__, BrokenPipeError)
    return isinstance(error, BrokenPipeError) and (closed or _has_no_reader())


def _has_no_reader() -> bool:
    """Whether standard output is a pipe without a reader, which only this shows if it has no buffer."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, no file, as in a notebook, or closed
        return False
    poll = select.poll()
    poll.register(output, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard(stream: Any) -> None:
    """Discard what a stream could not deliver, and all that follows.

    Python delivers once more at its end, and would complain or change the exit code.
    """
    with suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class _StandardError:
    """A stream that writes what it can on the current `sys.stderr` and raises nothing."""

    def __init__(self) -> None:
        self._has_reported = False

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)

    def _stream(self) -> Any:
        # While a bar is drawn, rich replaces sys.stderr by a stream of its own.
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def _try(self, do: Callable[[Any], object]) -> None:
        stream = self._stream()
        if stream is None:  # closed before the program began
            return
        try:
            do(stream)
        except OSError as error:
            if error.errno in _PERMANENT:
                _discard(stream)
            has_reported, self._has_reported = self._has_reported, True
            if not has_reported and _logger.hasHandlers():
                _logger.warning(
                    "Standard error takes nothing (%s): what it misses of the log is in this file.",
                    reason(error),
                    extra={"file_only": True},
                )


standard_error = cast(IO[str], _StandardError())
"""What to write on in place of `sys.stderr`."""


def finish_standard_error() -> None:
    """Deliver what is left, or discard it."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports mistakes in one line, like every program here."""

    def error(self, message: str) -> NoReturn:
        """Report a mistake.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"The command line: {message}. `{self.prog} --help` says what there is.")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what takes seconds within this block, which a program enters once.

    Libraries make a million objects that all stay. Searching them for garbage takes a third of the time of importing
    them, then time in each later collection, and again at the end: they are excluded for good.
    """
    if not gc.isenabled() or "torch" in sys.modules:  # Objects that exist by then may well be garbage.
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
