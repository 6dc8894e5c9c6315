"""The run in W&B, from the side of training: what to log, and what to do where W&B fails."""

import logging
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arcdist.config import Config
from arcdist.tracking.identity import Identity
from arcdist.tracking.metrics import Record, read_numbers
from arcdist.tracking.mirror import Mirror
from arcdist.tracking.rows import Row, make_row, rows_of
from arcdist.tracking.validation import Validation, read_validations
from arcdist.tracking.wandb_keys import BEST_METRIC, WHOLE
from arcdist.tracking.wandb_mode import Mode
from arcdist.tracking.wandb_pipe import WandbError, WandbPipe

INIT_SECONDS = 20.0
"""For W&B's server to answer at the start; training does not wait."""
FINISH_SECONDS = 12.0
"""For what is left to be sent at the end."""

_logger = logging.getLogger(__name__)


class WandbMirror(Mirror):
    """Keeps a run in W&B. Where that fails, the run goes on in its folder, offline, with all that W&B's files lack."""

    name = "W&B"

    def __init__(self, folder: Path, identity: Identity, config: Config, mode: Mode, *, best_metric: str) -> None:
        """Mirror the run in `folder`; nothing happens before `open`."""
        self._folder = folder
        self._mode = mode
        self._id = identity.id
        self._about: dict[str, Any] = {
            "folder": str(folder.resolve()),
            "project": config.tracking.wandb_project,
            "entity": config.tracking.wandb_entity,
            "identity": asdict(identity),
            "config": asdict(config),
            "about": {"tags": list(identity.tags), BEST_METRIC: best_metric, WHOLE: []},
            "init_seconds": INIT_SECONDS,
            "finish_seconds": FINISH_SECONDS,
        }
        self._pipe: WandbPipe | None = None
        self._killed = threading.Event()
        self._failed = False
        self._online = self._tried_online = mode != "offline"
        self._has: set[int] = set()
        """Steps whose rows W&B has; online, also all `_before` one."""
        self._before = 0
        self._given = 0
        """The last step that was to be logged."""
        self._waiting: Mapping[str, Any] | None = None
        """A step's record that stands in one row with that of its epoch."""

    @property
    def remedy(self) -> str:
        """How to get into W&B what is not there yet."""
        kind = "*run" if self._tried_online else "offline-run"
        return f"`wandb sync {shlex.quote(str(self._folder / 'wandb'))}/{kind}-*-{self._id}` uploads it"

    def open(self) -> None:
        """Begin the run, or go on with it."""
        try:
            self._begin(self._mode)
        except WandbError as error:
            self._go_offline(error)

    def catch_up(self, steps: Sequence[Record], epochs: Sequence[Record], validations: Sequence[Validation]) -> None:
        """Log the records of the run folder that W&B lacks."""
        for row in rows_of(steps, epochs, validations):
            self._log(row)

    def log_step(self, record: Record, *, ends_epoch: bool) -> None:
        """Log a step; one that ends its epoch waits for the epoch's record, which stands in the same row."""
        self._log_waiting()
        self._waiting = record
        if not ends_epoch:
            self._log_waiting()

    def log_epoch(self, step: int, record: Record, validation: Validation | None, plot: Path | None) -> None:
        """Log an epoch with its validation and the plot."""
        if self._waiting is not None and self._waiting["step"] != step:
            self._log_waiting()
        waiting, self._waiting = self._waiting, None
        self._log(make_row(step, waiting, record, validation), plot)

    def log_best(self, folder: Path) -> None:
        """Keep a checkpoint as the best so far."""
        try:
            self._ask("log_best", folder=str(folder.resolve()))
        except WandbError as error:  # The numbers are worth more.
            _logger.warning("W&B lacks the best checkpoint so far (%s): it is in %s.", error, folder)

    def close(self, exit_code: int) -> None:
        """Send what is left, and end the run; a step whose epoch has not ended is sent with it by who resumes."""
        self._waiting = None
        try:
            self._ask("finish", exit_code=exit_code)
        finally:
            self._end()
        if not self._online:
            _logger.info("The run is kept for W&B in its folder: %s.", self.remedy)

    def interrupt(self) -> None:
        """End W&B's process at once; what W&B has flushed stays in the run folder."""
        if (pipe := self._pipe) is not None:
            pipe.interrupt()

    def kill(self) -> None:
        """End W&B's process, for good."""
        self._killed.set()
        self.interrupt()

    def _log_waiting(self) -> None:
        if self._waiting is not None:
            record, self._waiting = self._waiting, None
            self._log(make_row(record["step"], record))

    def _log(self, row: Row, plot: Path | None = None) -> None:
        if row.step >= self._before and row.step not in self._has:
            validation = asdict(row.validation) if row.validation else None
            try:
                self._ask(
                    "log",
                    step=row.step,
                    numbers=row.numbers,
                    ends_epoch=row.ends_epoch,
                    validation=validation,
                    plot=str(plot) if plot else None,
                )
            except WandbError as error:
                self._go_offline(error)
                self._log(row, plot)
            self._has.add(row.step)
        self._given = max(self._given, row.step)

    def _begin(self, mode: Mode) -> None:
        if self._killed.is_set():
            raise WandbError("the run has ended")
        self._pipe = WandbPipe(self._folder / "wandb")
        if self._killed.is_set():  # Meanwhile.
            self.interrupt()
        try:
            answer = self._ask("open", mode=mode, **self._about)
        except WandbError:
            self._end()
            raise
        self._has, self._before = set(answer["steps"]), answer["before"]
        self._online = answer["url"] is not None
        if self._online:
            _logger.info("The run is kept in W&B: %s", answer["url"])
        elif not self._failed:
            self._tried_online = False

    def _go_offline(self, error: WandbError) -> None:
        self._end()
        if self._failed or self._killed.is_set():
            raise error
        self._failed = True
        mend = "See to the network, or to the key with `wandb login --relogin`; then " if self._tried_online else ""
        _logger.warning(
            "W&B failed (%s): from here on the run is kept for it in the run folder. %s%s.", error, mend, self.remedy
        )
        self._begin("offline")
        # What W&B was given and has not written stands in the run folder; what comes after that is still to be given.
        steps, metrics = read_numbers(self._folder)
        for row in rows_of(steps, metrics["epochs"], read_validations(self._folder)):
            if row.step <= self._given:
                self._log(row)

    def _ask(self, order: str, **values: Any) -> Any:
        if self._pipe is None:
            raise WandbError("the run has ended")
        return self._pipe.ask(order, **values)

    def _end(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.end()
