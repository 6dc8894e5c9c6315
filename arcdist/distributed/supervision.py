"""How a program ends: one message and an exit code, from one process or from many."""

import json
import logging
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from arcdist.cli import OutputClosed, ends_quietly, finish_standard_error, is_output_closed, standard_error
from arcdist.distributed.environment import attempt, is_main, launcher_keeps_store, rank, store_address, world_size
from arcdist.errors import ArcdistError, DistributedError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

_logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How often a rank asks whether another has failed."""
FAILED_SECONDS = POLL_SECONDS + 0.25
"""How long the rank that failed stays: until every other has asked, since the store may go when it goes."""
OTHERS_SECONDS = FAILED_SECONDS + 0.5
"""How long the others stay: torchrun stops all as soon as one ends, and calls that one the cause of the failure."""
REPORT_SECONDS = 5.0
"""How long a failing rank tries to reach the store before it ends without."""
IMPORT_SECONDS = 20.0
"""How much longer it tries where torch has yet to be imported for that."""


BEAT_SECONDS = 2.0
"""How often a rank leaves a sign of life."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What a rank that failed leaves for the others."""

    rank: int
    exit_code: int
    error: str
    """Its kind and the first line of its message."""


class FailureWatch:
    """Ends this process when another rank has failed, and the others when this one has; a context manager.

    While the block runs, a thread asks the store every half second whether a rank has failed. It has a connection of
    its own, so that nothing that the main thread does with the process group is in its way. With one process there
    is neither a thread nor a store.

    The block must begin after torch has been imported: two threads cannot import it at once.

    Once it is told what to say of this rank, the thread leaves signs of life in the store too, and looks for those of
    the next rank: a process that is stopped, or whose machine is lost, can tell of nothing.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._reports: queue.SimpleQueue[tuple[Failure, Future[bool]] | None] = queue.SimpleQueue()
        self._reporting = False
        self._ended = False
        self._stop = threading.Event()
        self._life: Callable[[], str] | None = None
        self._silence = 0.0
        self._beats = 0
        self._beat_at = -BEAT_SECONDS
        self._heard = ""
        self._heard_at = 0.0

    def mind_silence(self, life: Callable[[], str], seconds: float) -> None:
        """Leave signs of life, and fail for the next rank when it has left none for so many seconds.

        Args:
            life: says who and where this process is and what it is doing, in words.
            seconds: of silence.
        """
        self._silence = seconds
        self._life = life

    @property
    def started(self) -> bool:
        """Whether this rank learns of others' failures."""
        return self._thread is not None

    def __enter__(self) -> "FailureWatch":
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error the thread goes on: it has yet to report it, or to learn of the failure that brought it about.
        if self._thread is not None and error is None:
            self._stop.set()
            self._reports.put(None)
            self._thread.join(OTHERS_SECONDS + POLL_SECONDS)

    def report(self, failure: Failure) -> bool:
        """Let the others know that this rank has failed; whether it is the first, and thus the one to tell the user.

        A rank that finds another to be the first is ended by the thread. One that cannot reach the store tells.
        """
        self._reporting = True
        patience = REPORT_SECONDS + (0.0 if self.started else IMPORT_SECONDS)
        self._start()
        if not self.started:
            return True
        is_first: Future[bool] = Future()
        self._reports.put((failure, is_first))
        try:
            return is_first.result(patience)
        except TimeoutError:
            return True

    def _start(self) -> None:
        address = store_address()
        if self._thread is None and world_size() > 1 and address is not None:
            self._thread = threading.Thread(target=self._watch, args=(address,), name="failure watch", daemon=True)
            self._thread.start()

    def _watch(self, address: tuple[str, int]) -> None:
        store = self._connect(address)
        while store is not None:
            try:
                self._ask(store)
            except RuntimeError:
                # The connection broke. Whether the store itself is gone shows when it is connected to anew.
                store = self._connect(address)
            else:
                return

    def _connect(self, address: tuple[str, int]) -> "TCPStore | None":
        """A connection to the store, as soon as it is there; none where it no longer matters."""
        try:
            from torch.distributed import TCPStore  # type: ignore[attr-defined]
        except ImportError:
            return None  # A torch that cannot be imported is the error to report, and there is no way to report it.
        while not self._stop.is_set():
            try:
                # Asked first, because torch writes a page to stderr when it cannot connect.
                socket.create_connection(address, timeout=POLL_SECONDS).close()
                return TCPStore(*address, timeout=timedelta(seconds=REPORT_SECONDS), wait_for_workers=False)
            except ConnectionRefusedError:
                if launcher_keeps_store():
                    self._lost(address)
                    return None
            except (OSError, RuntimeError):
                pass
            self._stop.wait(POLL_SECONDS)
        return None

    def _ask(self, store: "TCPStore") -> None:
        """Ask for failures until this rank has ended well or is the first to fail; end the process where another is."""
        failed, ended = f"arcdist/{attempt()}/failed", f"arcdist/{attempt()}/ended"
        while True:
            if store.check([failed]):
                self._follow(Failure(**json.loads(store.get(failed))))
            self._ended = self._ended or store.check([ended])
            if self._life is not None and not (self._ended or self._reporting):
                self._keep_in_touch(store, self._life)
            try:
                report = self._reports.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if report is None:
                store.set(_beat_of(rank()), "")
                if rank() == 0:
                    store.set(ended, "")
                return
            failure, is_first = report
            text = json.dumps(asdict(failure))
            # Of an absent key, the store takes "" for the value to compare with.
            if store.compare_set(failed, "", text) == text.encode():
                is_first.set_result(True)
                return
            is_first.set_result(False)

    def _keep_in_touch(self, store: "TCPStore", life: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self._beat_at < BEAT_SECONDS:
            return
        if now - self._beat_at > 2 * BEAT_SECONDS:
            self._heard_at = now  # This process has slept itself, and cannot tell how long the other has been silent.
        self._beat_at = now
        self._beats += 1
        store.set(_beat_of(rank()), f"{self._beats} {life()}")
        neighbour = (rank() + 1) % world_size()
        if not store.check([_beat_of(neighbour)]):
            return  # It has yet to begin.
        heard = store.get(_beat_of(neighbour)).decode()
        if heard != self._heard:
            self._heard, self._heard_at = heard, now
        elif heard and now - self._heard_at > self._silence:  # It says nothing once it has ended well.
            self._miss(store, neighbour, heard.partition(" ")[2], now - self._heard_at)

    def _miss(self, store: "TCPStore", neighbour: int, last: str, seconds: float) -> None:
        problem = (
            f"Rank {neighbour} of {world_size()} has given no sign of life for {seconds:.0f} s. The last one: {last}. "
            f"The process was stopped, or its machine is lost: see there, and go on with --resume."
        )
        failure = Failure(rank=neighbour, exit_code=DistributedError.exit_code, error=problem)
        text = json.dumps(asdict(failure))
        failed = f"arcdist/{attempt()}/failed"
        if store.compare_set(failed, "", text) == text.encode():
            if _logger.hasHandlers():
                _logger.error(problem, extra={"file_only": True})
            standard_error.write(f"rank {rank()} of {world_size()} stops: {problem}\n")
            standard_error.flush()
            time.sleep(FAILED_SECONDS)
            leave(failure.exit_code)

    def _follow(self, failure: Failure) -> NoReturn:
        # For training.log: on the console the rank that failed tells. Without handlers, logging would print it there.
        if _logger.hasHandlers():
            _logger.error("Rank %d failed: %s", failure.rank, failure.error, extra={"file_only": True})
        time.sleep(OTHERS_SECONDS)
        leave(failure.exit_code)

    def _lost(self, address: tuple[str, int]) -> None:
        """End the process where the launcher that keeps the store has gone while ranks are at work."""
        if self._reporting or self._ended:
            return
        standard_error.write(
            f"rank {rank()} of {world_size()} stops: the first machine's launcher, which answered at "
            f"{address[0]}:{address[1]}, is gone. What ended it stands in its own output.\n"
        )
        leave(DistributedError.exit_code)


def _beat_of(number: int) -> str:
    return f"arcdist/{attempt()}/beat/{number}"


def leave(exit_code: int) -> NoReturn:
    """End the process now.

    An orderly end would wait, perhaps for ever, for collectives in which other ranks no longer take part.
    """
    # Flushing waits where the main thread is in the middle of a write that nobody reads.
    timer = threading.Timer(1.0, os._exit, (exit_code,))
    timer.daemon = True
    timer.start()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(exit_code)


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
