"""What each process is doing, in a file that is kept up to date even while the process is stuck."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from arcdist.errors import PlatformError
from arcdist.files import replacing

WRITE_SECONDS = 1.0
"""How often the file is written anew."""


class _Activity(NamedTuple):
    doing: str
    step: int | None
    since: datetime


class Heartbeat:
    """Writes `<run folder>/heartbeats/rank_<rank>.json` about every second.

    The file holds `rank`, `host`, `pid`, the `step` (none before the first), what the process is `doing` and `since`
    when, and when the file was `written`, as ISO 8601 times in UTC. Where `written` is recent and `since` is not, the
    process is stuck; where `written` is old too, it has ended or cannot run.

    Args:
        folder: the run folder.
        rank: this process among all.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / "heartbeats" / f"rank_{rank:05d}.json"
        self._who = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._activity = _Activity("starting", None, _now())
        self.observer: Callable[[str, float], object] | None = None
        """Told about every second what this process is doing, and for how many seconds; in the writing thread."""

    def doing(self, what: str, step: int | None = None) -> None:
        """Say what this process is about to do, and in which step if that has changed. Nothing is written yet."""
        # One assignment, so that the writing thread never sees the one of before with the step of now.
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
                f"The heartbeat {self.path} cannot be written: {error.strerror}. "
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

    def _keep_writing(self, stop: threading.Event) -> None:
        stopping = False
        while not stopping:
            stopping = stop.wait(WRITE_SECONDS)
            # A disk that is full for a while is no reason to end a run: what cannot do without it says so itself.
            with suppress(OSError):
                self._write()
            if self.observer is not None and not stopping:
                activity = self._activity
                with suppress(OSError, ValueError):  # as is a console that is gone
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
