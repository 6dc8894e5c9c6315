"""What shows a run's numbers elsewhere than in its folder while it trains: W&B, TensorBoard.

Training hands the records over and goes on at once. Whatever goes wrong behind that is one warning, never an end.
"""

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arcdist.config import Config
from arcdist.tracking.metrics import Record, Validation, finite
from arcdist.tracking.run_folder import Identity

CLOSE_SECONDS = 30.0
"""How long the end of a run waits for its mirrors."""
_SHARE_AFTER_INTERRUPT = 0.6
"""Of that time, what is kept for doing otherwise what does not end."""
_SECONDS_AFTER_KILL = 1.0

_logger = logging.getLogger(__name__)


class Mirror(ABC):
    """A place that a run is shown in. It works in one thread, which may hang and may fail."""

    name: str

    @property
    @abstractmethod
    def remedy(self) -> str:
        """How the user gets there what is missing."""

    @abstractmethod
    def open(self) -> None:
        """Begin, or go on where an earlier process of the run ended."""

    @abstractmethod
    def catch_up(self, steps: Sequence[Record], epochs: Sequence[Record], validations: Sequence[Validation]) -> None:
        """Take in the records that stand in the run folder."""

    @abstractmethod
    def log_step(self, record: Record, *, ends_epoch: bool) -> None:
        """Take in a logged step."""

    @abstractmethod
    def log_epoch(self, step: int, record: Record, validation: Validation | None, plot: Path | None) -> None:
        """Take in an epoch that ended with `step`."""

    @abstractmethod
    def log_best(self, folder: Path) -> None:
        """Take in a new best checkpoint."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """End in order."""

    @abstractmethod
    def interrupt(self) -> None:
        """Have what waits fail at once, so that it is done otherwise; called from another thread."""

    @abstractmethod
    def kill(self) -> None:
        """Leave nothing behind that runs, and begin nothing anew; called from any thread."""


class Mirrors:
    """The mirrors of a run. No method waits but `close`, and none raises."""

    def __init__(self, mirrors: Sequence[Mirror], *, close_seconds: float = CLOSE_SECONDS) -> None:
        """Open the mirrors, each in a daemon thread of its own, so that none waits for another."""
        self._workers = [_Worker(mirror) for mirror in mirrors]
        self._close_seconds = close_seconds

    def catch_up(
        self, steps: Sequence[Record], epochs: Sequence[Record], validations: Callable[[], Sequence[Validation]]
    ) -> None:
        """Show the records that stand in the folder of a run that is resumed, where they are not shown already.

        `validations` reads those of the folder: training need not wait for that.
        """
        steps, epochs = list(steps), list(epochs)
        self._do(lambda mirror: mirror.catch_up(steps, epochs, validations()))

    def log_step(self, record: Record, *, ends_epoch: bool) -> None:
        """Show a logged step; one that `ends_epoch` is followed by `log_epoch` of the same step."""
        step = finite(record)
        self._do(lambda mirror: mirror.log_step(step, ends_epoch=ends_epoch))

    def log_epoch(self, step: int, record: Record, validation: Validation | None, plot: Path | None) -> None:
        """Show the record of the epoch that ended with `step`, its validation and the metrics plot."""
        epoch = finite(record)
        self._do(lambda mirror: mirror.log_epoch(step, epoch, validation, plot))

    def log_best(self, folder: Path) -> None:
        """Keep the best checkpoint where the mirror can."""
        self._do(lambda mirror: mirror.log_best(folder))

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._workers)

    def close(self, exit_code: int, *, seconds: float | None = None) -> None:
        """Wait until all is shown, for `seconds` at most where they are fewer than usual, and end."""
        deadline = time.monotonic() + min(self._close_seconds, self._close_seconds if seconds is None else seconds)
        for worker in self._workers:
            worker.end(exit_code)
        for worker in self._workers:
            worker.join(deadline)
        self._workers = []

    def _do(self, call: Callable[[Mirror], None]) -> None:
        for worker in self._workers:
            worker.do(call)


def check_mirrors(config: Config) -> None:
    """See that what the configuration asks for by name is there, before anything else of a run is.

    Raises:
        ConfigError: `WANDB_MODE` in the environment is none of W&B's.
        PlatformError: a package is not installed.
    """
    from arcdist.tracking.tensorboard import require_tensorboard
    from arcdist.tracking.wandb_run import wandb_mode

    if config.tracking.tensorboard:
        require_tensorboard()
    wandb_mode(config)


def open_mirrors(
    folder: Path, identity: Identity, config: Config, *, best_metric: str, close_seconds: float = CLOSE_SECONDS
) -> Mirrors:
    """The mirrors that the configuration asks for, at work.

    Args:
        folder: of the run.
        identity: of the run.
        config: of the run; `config.tracking` chooses.
        best_metric: what the best epoch is chosen by.
        close_seconds: how long the end of the run waits for them.

    Raises:
        PlatformError: a package that is asked for by name is not installed.
    """
    from arcdist.tracking.tensorboard import TensorBoardMirror
    from arcdist.tracking.wandb_run import WandbMirror, wandb_mode

    mirrors: list[Mirror] = []
    if config.tracking.tensorboard:
        mirrors.append(TensorBoardMirror(folder, identity))
    mode = wandb_mode(config)
    if mode != "disabled":
        mirrors.append(WandbMirror(folder, identity, config, mode, best_metric=best_metric))
    return Mirrors(mirrors, close_seconds=close_seconds)


class _Worker:
    """The thread that a mirror works in, and what it has still to do."""

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
        left = deadline - time.monotonic()
        self._thread.join(max(0.0, left * (1 - _SHARE_AFTER_INTERRUPT)))
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
            except Exception as error:  # Whatever it is: training goes on.
                self._warn(" ".join(f"{type(error).__name__}: {error}".split()))
                self._mirror.kill()
                return

    def _warn(self, why: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            _logger.warning(
                "%s lacks what is left of this run (%s). The run folder has all: %s.",
                self._mirror.name,
                why,
                self._mirror.remedy,
            )
