"""Standard error as a run writes it: who watches may leave, a terminal may go, a disk behind it may be full."""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

_logger = logging.getLogger(__name__)


class _StandardError:
    """Writes what it can. Once something cannot be written it is thrown away, with all that follows."""

    def write(self, text: str) -> int:
        try:
            _stream().write(text)
        except OSError as error:
            _give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            _stream().flush()
        except OSError as error:
            _give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(_stream(), name)


standard_error = cast(IO[str], _StandardError())
"""What to write on in place of `sys.stderr`, which is looked up anew each time: no error of it ends a run."""


def _stream() -> Any:
    # While a bar is drawn, rich's own stream stands in for the one below it.
    return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


def _give_up(error: OSError) -> None:
    # Python delivers what is left when it ends, and would make an exit code of its own of that.
    with suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), _stream().fileno())
    if _logger.hasHandlers():
        _logger.warning(
            "Standard error takes no more (%s): what follows stands in this file alone.",
            error.strerror or error,
            extra={"file_only": True},
        )
