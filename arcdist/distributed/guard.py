"""How a program ends: one message and an exit code, from one process or from many."""

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NoReturn

from arcdist.closed_output import OutputClosed, ends_quietly, is_output_closed
from arcdist.distributed.environment import is_main, launcher_keeps_store, rank, store_address, world_size
from arcdist.distributed.failure import FAILED_SECONDS, OTHERS_SECONDS, POLL_SECONDS, Failure, FailureWatch, leave
from arcdist.errors import ArcdistError, DistributedError
from arcdist.standard_error import finish_standard_error, standard_error

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
PATIENCE_SECONDS = 5.0
"""How long a rank holds back an error that rank 0 is likely to meet, and to tell, as well."""
SAVING_SECONDS = 30.0
"""How long an interrupted rank waits for rank 0, which may be writing a checkpoint; torchrun gives them no longer."""

_QUIET = (KeyboardInterrupt, OutputClosed)
"""What needs no message."""


def run_guarded(program: str, main: Callable[[FailureWatch], int | None]) -> int:
    """Run `main` and return its exit code (none is 0), an `ArcdistError`'s after a message on stderr, 130 after Ctrl-C.

    It is 141, without a word, where standard output was closed before all was printed.

    With several processes standard output is rank 0's alone, and this returns only where `main` does. A rank that fails
    ends them all, and one tells: an `ArcdistError` is rank 0's to tell where rank 0 meets it too; of any other
    exception the first rank to meet one prints the whole traceback, below a line that names the rank. The exit code
    of all is that of the rank that told.

    Args:
        program: what messages begin with.
        main: is given the watch that it has to enter once torch is imported.

    Raises:
        Exception: with one process, any but those named above.
    """
    watch = FailureWatch()
    with _output_of_main():
        try:
            code = main(watch) or 0
            return OutputClosed.exit_code if is_output_closed() and code == 0 else code
        except (Exception, KeyboardInterrupt, SystemExit) as raised:
            error = OutputClosed() if ends_quietly(raised) else raised
            if isinstance(error, SystemExit):
                raise
            if world_size() > 1:
                _end_all(program, error, watch)
            if isinstance(error, ArcdistError):
                standard_error.write(f"{program}: {error}\n")
            elif not isinstance(error, _QUIET):
                raise
            return _exit_code(error)
        finally:
            finish_standard_error()


@contextmanager
def _output_of_main() -> Iterator[None]:
    if is_main():
        yield
    else:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if _is_lost_connection(error):
        return DistributedError.exit_code
    return error.exit_code if isinstance(error, ArcdistError | OutputClosed) else 1


def _end_all(program: str, error: BaseException, watch: FailureWatch) -> NoReturn:
    try:
        _leave_it_to_main(error, watch)
        # Before the watch has begun, rank 0 need not wait for torch to be imported: its end is seen by the others.
        silent_start = is_main() and not watch.started
        if silent_start or watch.report(Failure(rank=rank(), exit_code=_exit_code(error), error=_headline(error))):
            standard_error.write(_story(program, error))
            standard_error.flush()
            time.sleep(FAILED_SECONDS)
        else:
            time.sleep(OTHERS_SECONDS + POLL_SECONDS)  # The watch's thread ends the process within that time.
    except KeyboardInterrupt:
        leave(INTERRUPTED)
    leave(_exit_code(error))


def _leave_it_to_main(error: BaseException, watch: FailureWatch) -> None:
    """Wait for rank 0 to fail alike; this process is then ended, by its launcher or by the watch's thread.

    torchrun stops all processes as soon as one ends: one that ended before rank 0 had told would silence it.
    """
    if not watch.started and isinstance(error, KeyboardInterrupt):
        leave(INTERRUPTED)  # Nothing has begun that could be saved.
    if is_main():
        return
    if not watch.started:
        _wait_for_launcher_to_stop(_exit_code(error))
    elif isinstance(error, KeyboardInterrupt):
        time.sleep(SAVING_SECONDS)
    elif isinstance(error, ArcdistError):
        time.sleep(PATIENCE_SECONDS)


def _wait_for_launcher_to_stop(exit_code: int) -> None:
    """Give rank 0 its time; where its machine is another, its failure shows in that its launcher's store is gone."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    address = store_address() if launcher_keeps_store() else None
    while time.monotonic() < give_up:
        if address is not None:
            try:
                socket.create_connection(address, timeout=POLL_SECONDS).close()
            except ConnectionRefusedError:
                leave(exit_code)
            except OSError:
                pass  # A network that is slow to answer says nothing of rank 0.
        time.sleep(POLL_SECONDS)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an exchange failed because the other side is gone. PyTorch has no class of its own for that."""
    return isinstance(error, RuntimeError) and any(
        sign in str(error)
        for sign in ("Connection reset by peer", "Connection closed by peer", "remote process exited")
    )


def _headline(error: BaseException) -> str:
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _story(program: str, error: BaseException) -> str:
    """What the user is told, in one piece: the lines of several processes may mix."""
    if isinstance(error, _QUIET):
        return ""
    who = f"rank {rank()} of {world_size()}"
    if isinstance(error, ArcdistError):
        return f"{program}: {error}\n" if is_main() else f"{program}: {who}: {error}\n"
    if _is_lost_connection(error):
        reason = str(error).partition("\n")[0]
        return (
            f"{program}: {who} has lost another one, which was killed (for want of memory, perhaps) or whose machine "
            f"is lost: the launcher's report below names it as the root cause. Go on with --resume. ({reason})\n"
        )
    return f"{program}: {who} failed: {_headline(error)}\n{''.join(traceback.format_exception(error))}"
