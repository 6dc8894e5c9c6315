"""Standard output whose reader has seen enough, as `head` has after ten lines."""

import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


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
