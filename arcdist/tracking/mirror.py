"""Mirrors show a run's numbers elsewhere than in its folder while it trains: W&B, TensorBoard.

Training hands the records over and continues at once. If anything fails afterwards, one warning is logged.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcdist.errors import kind_and_reason
from arcdist.tracking.metrics import Record, Validation, finite

_CLOSE_SECONDS = 30.0
"""How long the end of a run waits for its mirrors."""
_SHARE_BEFORE_INTERRUPT = 0.4
"""The share of that time that passes before `interrupt`."""
_SECONDS_AFTER_KILL = 1.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What W&B and TensorBoard keep of one training step: its numbers, and those of the epoch that ends with it."""

    step: int
    numbers: Mapping[str, Any]
    ends_epoch: bool = False
    validation: Validation | None = None
    plot: Path | None = None


EPOCH = "epoch/"
"""Prefix of an epoch's numbers in a row, except for `EPOCH_ONLY`."""
EPOCH_ONLY = ("val/", "floor/")
"""Beginnings of the names that no step has."""


def make_row(
    number: int,
    step: Mapping[str, Any] | None,
    epoch: Mapping[str, Any] | None = None,
    validation: Validation | None = None,
    plot: Path | None = None,
) -> Row:
    """The row of training step `number`, from the records of the step and of the epoch that ends with it."""
    numbers = dict(step or {})
    for name, value in (epoch or {}).items():
        numbers[name if name == "epoch" or name.startswith(EPOCH_ONLY) else EPOCH + name] = value
    return Row(step=number, numbers=numbers, ends_epoch=epoch is not None, validation=validation, plot=plot)


def make_rows(
    steps: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]], validations: Sequence[Validation]
) -> list[Row]:
    """The rows of the records in a run folder, by step; epochs of old versions, which name no step, are left out."""
    by_step: dict[int, dict[str, Any]] = {}
    for record in steps:
        # A run that is ended by its health flags logs them in a line of their own.
        by_step[record["step"]] = {**by_step.get(record["step"], {}), **record}
    validated = {validation.epoch: validation for validation in validations}
    ends = {record["step"]: record for record in epochs if "step" in record}
    return [
        make_row(step, by_step.get(step), ends.get(step), validated.get(ends[step]["epoch"]) if step in ends else None)
        for step in sorted(by_step.keys() | ends)
    ]


class Mirror:
    """A place that a run is shown in. It works in one thread, and may hang or fail."""

    name: str

    @property
    def remedy(self) -> str:
        """How the user gets what is missing there."""
        raise NotImplementedError

    def open(self) -> None:
        """Begin, or continue where an earlier process of the run ended."""

    def log(self, row: Row) -> None:
        """Show a training step, with the epoch that ends with it; what is shown already may come again."""

    def log_best(self, folder: Path) -> None:
        """Keep a new best checkpoint, if the place keeps checkpoints."""

    def close(self, exit_code: int) -> None:
        """End in order."""

    def interrupt(self) -> None:
        """Make a call that waits fail at once, so that its work is done another way; called from another thread."""

    def kill(self) -> None:
        """Leave nothing running, and start nothing again; called from any thread."""


class Mirrors:
    """The mirrors of a run. No method but `close` waits, and none raises."""

    def __init__(self, mirrors: Sequence[Mirror]) -> None:
        """Open the mirrors, each in its own daemon thread, so that none waits for another."""
        self._workers = [_Worker(mirror) for mirror in mirrors]
        self._waiting: dict[str, Any] | None = None
        """The record of a step that ends its epoch, which shares a row with the epoch's record."""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._workers)

    def catch_up(
        self, steps: Sequence[Record], epochs: Sequence[Record], validations: Callable[[], Sequence[Validation]]
    ) -> None:
        """Show the records in the folder of a resumed run, unless they are shown already.

        `validations` reads those of the folder: training need not wait for that.
        """
        steps, epochs = list(steps), list(epochs)

        def log_all(mirror: Mirror) -> None:
            for row in make_rows(steps, epochs, validations()):
                mirror.log(row)

        self._do(log_all)

    def log_step(self, record: Record, *, ends_epoch: bool) -> None:
        """Show a logged step; one that `ends_epoch` is shown with `log_epoch` of the same step, or after a resume."""
        self._log_waiting()
        self._waiting = finite(record)
        if not ends_epoch:
            self._log_waiting()

    def log_epoch(self, step: int, record: Record, validation: Validation | None, plot: Path | None) -> None:
        """Show the record of the epoch that ended with `step`, its validation and the metrics plot."""
        if self._waiting is not None and self._waiting["step"] != step:
            self._log_waiting()
        self._log(make_row(step, self._waiting, finite(record), validation, plot))
        self._waiting = None

    def log_best(self, folder: Path) -> None:
        """Keep the best checkpoint, if the mirror can."""
        self._do(lambda mirror: mirror.log_best(folder))

    def close(self, exit_code: int, *, seconds: float | None = None) -> None:
        """Wait until all is shown, for at most `seconds`, by default 30, and end."""
        deadline = time.monotonic() + (_CLOSE_SECONDS if seconds is None else seconds)
        for worker in self._workers:
            worker.end(exit_code)
        for worker in self._workers:
            worker.join(deadline)
        self._workers = []

    def _log_waiting(self) -> None:
        if self._waiting is not None:
            self._log(make_row(self._waiting["step"], self._waiting))
            self._waiting = None

    def _log(self, row: Row) -> None:
        self._do(lambda mirror: mirror.log(row))

    def _do(self, call: Callable[[Mirror], None]) -> None:
        for worker in self._workers:
            worker.do(call)


class _Worker:
    """The thread that a mirror works in, and the calls that wait for it."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._calls: queue.SimpleQueue[Callable[[Mirror], Any] | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self._calls.put(lambda mirror: mirror.open())
        self._thread = threading.Thread(target=self._work, name=f"arcdist {mirror.name}", daemon=True)
        self._thread.start()

    def do(self, call: Callable[[Mirror], Any]) -> None:
        if not self._given_up.is_set():
            self._calls.put(call)

    def end(self, exit_code: int) -> None:
        self._calls.put(lambda mirror: mirror.close(exit_code))
        self._calls.put(None)

    def join(self, deadline: float) -> None:
        self._thread.join(max(0.0, _SHARE_BEFORE_INTERRUPT * (deadline - time.monotonic())))
        if self._thread.is_alive():
            self._mirror.interrupt()
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn("it took too long to end")
            self._mirror.kill()
            self._thread.join(_SECONDS_AFTER_KILL)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call(self._mirror)
            except Exception as error:  # Training continues after any failure here.
                self._warn(kind_and_reason(error))
                self._mirror.kill()
                return

    def _warn(self, why: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            _logger.warning(
                "%s lacks the rest of this run (%s). The run folder has everything: %s.",
                self._mirror.name,
                why,
                self._mirror.remedy,
            )
