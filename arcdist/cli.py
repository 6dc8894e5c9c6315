"""Importing torch and what stands on it, in two thirds of the time."""

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

from arcdist.errors import ConfigError


class OutputClosed(Exception):
    """Who read standard output has gone. `exit_code` is what a shell shows of a program that SIGPIPE ends."""

    exit_code = 141


def throw_away(stream: Any) -> None:
    """Let go of what a stream could not deliver, and of all that follows.

    Python delivers once more when it ends, and would complain, or make an exit code of its own of it.
    """
    with suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def is_output_closed() -> bool:
    """Whether something was printed that can no longer be delivered; it is then thrown away, with all that follows."""
    if sys.stdout is None:  # closed before the program began
        return False
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        throw_away(sys.stdout)
        return True
    except OSError:  # a full disk, of which Python tells when it ends
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
    """Of output without a buffer nothing is left that would show it."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, no file, as in a notebook, or closed
        return False
    poll = select.poll()
    poll.register(output, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


_logger = logging.getLogger(__name__)

_FOR_EVER = (errno.EPIPE, errno.EIO, errno.ENXIO)
"""The reader or the terminal is gone; after any other failure there may be room again."""


class _StandardError:
    """A stream that writes what it can on `sys.stderr`, which it looks up anew each time; it raises nothing."""

    def __init__(self) -> None:
        self._told = False

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def __getattr__(self, name: str) -> Any:
        return getattr(_stream(), name)

    def _try(self, do: Callable[[Any], object]) -> None:
        stream = _stream()
        if stream is None:  # closed before the program began
            return
        try:
            do(stream)
        except OSError as error:
            if error.errno in _FOR_EVER:
                throw_away(stream)
            if not self._told:
                self._told = True
                _tell(error)


standard_error = cast(IO[str], _StandardError())
"""What to write on in place of `sys.stderr`."""


def finish_standard_error() -> None:
    """Deliver what is left, or throw it away."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        throw_away(sys.stderr)


def _stream() -> Any:
    # While a bar is drawn, rich's own stream stands in for the one below it.
    return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


def _tell(error: OSError) -> None:
    if _logger.hasHandlers():
        _logger.warning(
            "Standard error takes nothing (%s): what it misses of the log stands in this file.",
            error.strerror or error,
            extra={"file_only": True},
        )


class OneLineParser(argparse.ArgumentParser):
    """One whose mistakes are told in one line, like those of every program here."""

    def error(self, message: str) -> NoReturn:
        """Tell of a mistake.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"The command line: {message}. `{self.prog} --help` says what there is.")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what takes seconds within this block, which a program enters once.

    Libraries make a million objects that all stay. Looking for garbage among them takes a third of the time of
    importing them, then time in each later collection, and again at the end: it is left out, for good.
    """
    if not gc.isenabled() or "torch" in sys.modules:  # What else is there by then may well be garbage.
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
