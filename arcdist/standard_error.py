"""Standard error as a run writes it: who watches may leave, a terminal may go, a disk behind it may be full."""

import errno
import logging
import sys
from collections.abc import Callable
from typing import IO, Any, cast

from arcdist.closed_output import throw_away

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
