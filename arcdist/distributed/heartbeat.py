"""What each process is doing: in a file, kept up to date even while the process is stuck, and for other processes."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from arcdist.distributed.environment import rank, store_key, world_size
from arcdist.errors import PlatformError, reason
from arcdist.files import replacing

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

WRITE_SECONDS = 1.0
"""How often the file is rewritten."""
BEAT_SECONDS = 2.0
"""How often a process leaves a sign of life in the store."""


class _Activity(NamedTuple):
    doing: str
    step: int | None
    since: datetime


class Heartbeat:
    """Writes `<run folder>/heartbeats/rank_<rank>.json` about every second.

    The file holds `rank`, `host`, `pid`, the `step` (null before the first), what the process is `doing` and `since`
    when, and when the file was `written`, as ISO 8601 times in UTC. If `written` is recent and `since` is not, the
    process is stuck; if `written` is old too, it has ended or cannot run.

    Args:
        folder: the run folder.
        rank: this process among all.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / "heartbeats" / f"rank_{rank:05d}.json"
        self._who = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._activity = _Activity("starting", None, _now())
        self.observer: Callable[[str, float], object] | None = None
        """Called about every second, in the writing thread, with what this process is doing and for how long in s."""

    def doing(self, what: str, step: int | None = None) -> None:
        """Set what this process is about to do, and in which step if that has changed; the thread writes it later."""
        # One assignment, so that the writing thread never sees the old activity with the new step.
        self._activity = _Activity(what, self._activity.step if step is None else step, _now())

    def life(self) -> str:
        """Who and where this process is, and what it is doing, in words."""
        activity, who = self._activity, self._who
        step = "before the first step" if activity.step is None else f"step {activity.step}"
        since = activity.since.isoformat(timespec="seconds")
        return f"{activity.doing}, {step}, since {since}, on {who['host']} (pid {who['pid']})"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep the file up to date while the block runs; afterwards it says "ended", or what an error interrupted.

        Raises:
            PlatformError: the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise PlatformError(
                f"The heartbeat {self.path} cannot be written: {reason(error)}. "
                f"Name a folder that can be written on every machine with --output_dir."
            ) from error
        stop = threading.Event()
        thread = threading.Thread(target=self._keep_writing, args=(stop,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
            self.doing("ended")
        except KeyboardInterrupt:
            self.doing("ended by Ctrl-C")
            raise
        finally:
            stop.set()
            thread.join()
            with suppress(OSError):
                self._write()

    def _keep_writing(self, stop: threading.Event) -> None:
        while not stop.wait(WRITE_SECONDS):
            with suppress(OSError):  # A disk that is full for a while is no reason to end a run.
                self._write()
            if self.observer is not None:
                activity = self._activity
                with suppress(OSError, ValueError):  # The console may be gone.
                    self.observer(activity.doing, (_now() - activity.since).total_seconds())

    def _write(self) -> None:
        activity = self._activity
        record = {
            **self._who,
            "step": activity.step,
            "doing": activity.doing,
            "since": activity.since.isoformat(timespec="milliseconds"),
            "written": _now().isoformat(timespec="milliseconds"),
        }
        # Readers find the file whole. It need not outlast a power failure, so nothing waits for the disk.
        with replacing(self.path, durable=False) as partial:
            partial.write_text(json.dumps(record) + "\n", encoding="utf-8")


def _now() -> datetime:
    return datetime.now(UTC)


class SignsOfLife:
    """This process's signs of life in the store, and the time since the next rank, its neighbour, left one.

    Args:
        describe: says who and where this process is and what it is doing.
        silence: seconds after which a rank without a sign of life counts as failed.
    """

    def __init__(self, describe: Callable[[], str], silence: float) -> None:
        self.neighbour = (rank() + 1) % world_size()
        self._describe = describe
        self._silence = silence
        self._beats = 0
        self._beat_at = -BEAT_SECONDS
        self._last_sign = ""
        self._last_sign_at = 0.0

    def exchange(self, store: "TCPStore") -> str | None:
        """Leave a sign and look for the neighbour's, if it is time; the problem if it has been silent for too long."""
        now = time.monotonic()
        if now - self._beat_at < BEAT_SECONDS:
            return None
        if now - self._beat_at > 2 * BEAT_SECONDS:
            # This process was suspended itself, and cannot know how long the other was silent.
            self._last_sign_at = now
        self._beat_at = now
        self._beats += 1
        store.set(store_key(f"beat/{rank()}"), f"{self._beats} {self._describe()}")
        theirs = store_key(f"beat/{self.neighbour}")
        if not store.check([theirs]):
            return None  # It has yet to begin.
        sign = store.get(theirs).decode()
        if sign != self._last_sign:
            self._last_sign, self._last_sign_at = sign, now
        seconds = now - self._last_sign_at
        if not sign or seconds <= self._silence:  # The sign is empty once the neighbour has ended well.
            return None
        return (
            f"Rank {self.neighbour} of {world_size()} has given no sign of life for {seconds:.0f} s. The last one: "
            f"{sign.partition(' ')[2]}. The process was stopped, or its machine is lost: look there, and continue with "
            f"--resume."
        )

    def end(self, store: "TCPStore") -> None:
        """Announce that no more signs will come, since this rank has ended well."""
        store.set(store_key(f"beat/{rank()}"), "")
