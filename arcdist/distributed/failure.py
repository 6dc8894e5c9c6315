"""One rank's failure is every rank's within two seconds, whatever its main thread is stuck in; its silence, in time."""

import json
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from arcdist.distributed.environment import attempt, launcher_keeps_store, rank, store_address, world_size
from arcdist.errors import DistributedError
from arcdist.standard_error import standard_error

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
