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
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from arcdist.cli import OutputClosed, ends_quietly, finish_standard_error, is_output_closed, standard_error
from arcdist.distributed.environment import (
    check_environment,
    is_main,
    launcher_keeps_store,
    rank,
    store_address,
    store_key,
    world_size,
)
from arcdist.distributed.heartbeat import SignsOfLife
from arcdist.errors import ArcdistError, ConfigError, DistributedError, kind_and_reason

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
"""How much longer it tries if torch has yet to be imported for that."""
PATIENCE_SECONDS = 5.0
"""How long a rank holds back an error that rank 0 is likely to meet, and to report, as well."""
SAVING_SECONDS = 30.0
"""How long an interrupted rank waits for rank 0, which may be writing a checkpoint; torchrun gives them no longer."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_QUIET = (KeyboardInterrupt, OutputClosed)
"""What needs no message."""


class Failure(NamedTuple):
    """What a rank that failed leaves for the others."""

    rank: int
    exit_code: int
    error: str
    """Its kind and the first line of its message."""

    def claim(self, store: "TCPStore") -> bool:
        """Leave it in the store as the run's first failure; False if there is an earlier one."""
        text = json.dumps(self._asdict())
        # Of an absent key, the store takes "" for the value to compare with.
        return store.compare_set(store_key("failed"), "", text) == text.encode()


class FailureWatch:
    """Ends this process when another rank has failed, and the others when this one has; a context manager.

    While the block runs, a thread asks the store every half second whether a rank has failed. It has a connection of
    its own, which the main thread's use of the process group cannot block. With one process there is neither a thread
    nor a store. The block must begin after torch has been imported: two threads cannot import it at once.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._reports: queue.SimpleQueue[tuple[Failure, Future[bool]] | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._is_reporting = False
        self._has_rank_0_ended = False
        self._signs: SignsOfLife | None = None

    def mind_silence(self, life: Callable[[], str], seconds: float) -> None:
        """Leave signs of life, and fail for the next rank when it has left none for so many seconds.

        A process that is stopped, or whose machine is lost, cannot report its failure itself.

        Args:
            life: says who and where this process is and what it is doing.
            seconds: of silence.
        """
        self._signs = SignsOfLife(life, seconds)

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
        # After an error the thread continues: it has yet to report it, or to learn of the failure that caused it.
        if self._thread is not None and error is None:
            self._stop.set()
            self._reports.put(None)
            self._thread.join(OTHERS_SECONDS + POLL_SECONDS)

    def report(self, failure: Failure) -> bool:
        """Let the others know that this rank has failed; whether it is the first, and thus reports to the user.

        A rank that finds another to be the first is ended by the thread. One that cannot reach the store is the first.
        """
        self._is_reporting = True
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
        while (store := self._connect(address)) is not None:
            try:
                self._ask(store)
            except RuntimeError:
                continue  # The connection broke. Whether the store itself is gone shows when it is made again.
            return

    def _connect(self, address: tuple[str, int]) -> "TCPStore | None":
        """A connection to the store, as soon as it is there; None if it no longer matters."""
        try:
            from torch.distributed import TCPStore  # type: ignore[attr-defined]
        except ImportError:
            return None  # A torch that cannot be imported is the error to report, and there is no way to report it.
        while not self._stop.is_set():
            # Asked first, because torch writes a page to stderr when it cannot connect.
            is_there = _is_listening(address)
            if is_there:
                with suppress(OSError, RuntimeError):
                    return TCPStore(*address, timeout=timedelta(seconds=REPORT_SECONDS), wait_for_workers=False)
            elif is_there is False and launcher_keeps_store():
                if not (self._is_reporting or self._has_rank_0_ended):
                    host, port = address
                    _stop(f"the first machine's launcher, which answered at {host}:{port}, is gone. See its output.")
                return None
            self._stop.wait(POLL_SECONDS)
        return None

    def _ask(self, store: "TCPStore") -> None:
        """Ask for failures until this rank has ended well or is the first to fail; end the process if another is."""
        while True:
            if store.check([store_key("failed")]):
                failure = Failure(**json.loads(store.get(store_key("failed"))))
                _log(f"Rank {failure.rank} failed: {failure.error}")
                time.sleep(OTHERS_SECONDS)
                leave(failure.exit_code)
            self._has_rank_0_ended = self._has_rank_0_ended or store.check([store_key("ended")])
            signs = None if self._has_rank_0_ended or self._is_reporting else self._signs
            problem = signs.exchange(store) if signs else None
            if signs and problem and Failure(signs.neighbour, DistributedError.exit_code, problem).claim(store):
                _log(problem)
                _stop(problem, FAILED_SECONDS)
            try:
                report = self._reports.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if report is None:
                if self._signs is not None:
                    self._signs.end(store)
                if is_main():
                    store.set(store_key("ended"), "")
                return
            failure, is_first = report
            is_first.set_result(failure.claim(store))
            if is_first.result():
                return


def _is_listening(address: tuple[str, int]) -> bool | None:
    """Whether a server is there; None if the network does not say."""
    try:
        socket.create_connection(address, timeout=POLL_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
    return True


def _log(problem: str) -> None:
    # For training.log: on the console the rank that failed reports. Without handlers, logging would print it there.
    if _logger.hasHandlers():
        _logger.error(problem, extra={"file_only": True})


def _stop(problem: str, seconds: float = 0.0) -> NoReturn:
    standard_error.write(f"rank {rank()} of {world_size()} stops: {problem}\n")
    standard_error.flush()
    time.sleep(seconds)
    leave(DistributedError.exit_code)


def leave(exit_code: int) -> NoReturn:
    """End the process now.

    An orderly end would wait, perhaps for ever, for collectives in which other ranks no longer take part.
    """
    # Flushing waits if the main thread is in the middle of a write that nobody reads.
    timer = threading.Timer(1.0, os._exit, (exit_code,))
    timer.daemon = True
    timer.start()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(exit_code)


def run_guarded(program: str, main: Callable[[FailureWatch], int | None]) -> int:
    """Run `main` and return its exit code (None is 0), an `ArcdistError`'s after a message on stderr, 130 after Ctrl-C.

    It is 141, without a message, if standard output was closed before all was printed.

    With several processes standard output is rank 0's alone, and this returns only if `main` does. A rank that fails
    ends them all, and one reports: rank 0 an `ArcdistError` that it meets too; of any other exception the first rank
    to meet one prints the whole traceback, below a line that names the rank. All end with the exit code of the rank
    that reported.

    Args:
        program: what messages begin with.
        main: takes the watch, which it must enter once torch is imported.

    Raises:
        Exception: with one process, any but those named above.
    """
    try:
        check_environment()
    except ConfigError as mistake:  # Which process this is, and how many there are, is not known.
        standard_error.write(f"{program}: {mistake}\n")
        return mistake.exit_code
    watch = FailureWatch()
    with ExitStack() as stack:
        stack.callback(finish_standard_error)
        if not is_main():
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        try:
            code = main(watch) or 0
            return OutputClosed.exit_code if is_output_closed() and code == 0 else code
        except (Exception, KeyboardInterrupt, SystemExit) as raised:
            error = OutputClosed() if ends_quietly(raised) else raised
            if isinstance(error, SystemExit):
                raise
            if world_size() > 1:
                _end_all(program, error, watch)
            if not isinstance(error, (ArcdistError, *_QUIET)):
                raise
            standard_error.write(_message(program, error))
            return _exit_code(error)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, ArcdistError | OutputClosed):
        return error.exit_code
    if _is_lost_connection(error):
        return DistributedError.exit_code
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _end_all(program: str, error: BaseException, watch: FailureWatch) -> NoReturn:
    try:
        if not watch.started and isinstance(error, KeyboardInterrupt):
            leave(INTERRUPTED)  # Nothing has begun that could be saved.
        if not is_main():
            _wait_for_rank_0_to_fail(error, watch)
        # Before the watch has begun, rank 0 need not wait for torch to be imported: the others see its end.
        is_unwatched = is_main() and not watch.started
        if is_unwatched or watch.report(Failure(rank(), _exit_code(error), kind_and_reason(error))):
            standard_error.write(_message(program, error))
            standard_error.flush()
            time.sleep(FAILED_SECONDS)
        else:
            time.sleep(OTHERS_SECONDS + POLL_SECONDS)  # The watch's thread ends the process within that time.
    except KeyboardInterrupt:
        leave(INTERRUPTED)
    leave(_exit_code(error))


def _wait_for_rank_0_to_fail(error: BaseException, watch: FailureWatch) -> None:
    """Wait for rank 0 to fail alike; this process is then ended, by its launcher or by the watch's thread.

    torchrun stops all processes as soon as one ends: one that ended before rank 0 had reported would silence it.
    """
    if watch.started:
        if isinstance(error, KeyboardInterrupt):
            time.sleep(SAVING_SECONDS)
        elif isinstance(error, ArcdistError):
            time.sleep(PATIENCE_SECONDS)
        return
    give_up = time.monotonic() + PATIENCE_SECONDS
    # If rank 0's machine is another, its failure shows in that its launcher's store is gone.
    address = store_address() if launcher_keeps_store() else None
    while time.monotonic() < give_up:
        if address is not None and _is_listening(address) is False:
            leave(_exit_code(error))
        time.sleep(POLL_SECONDS)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an exchange failed because the other side is gone. PyTorch has no class of its own for that."""
    signs = ("Connection reset by peer", "Connection closed by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _message(program: str, error: BaseException) -> str:
    """What the user reads, in one piece: the lines of several processes may mix."""
    who = f"rank {rank()} of {world_size()}"
    if isinstance(error, _QUIET):
        return ""
    if isinstance(error, ArcdistError):
        return f"{program}: {error}\n" if is_main() else f"{program}: {who}: {error}\n"
    if _is_lost_connection(error):
        return (
            f"{program}: {who} has lost the connection to another rank, which was killed (for lack of memory, perhaps) "
            f"or whose machine is lost: the launcher's report below names it as the root cause. Continue with "
            f"--resume. ({kind_and_reason(error)})\n"
        )
    return f"{program}: {who} failed: {kind_and_reason(error)}\n{''.join(traceback.format_exception(error))}"
