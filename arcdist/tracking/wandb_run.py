"""The run in W&B, from the side of training: what to log, and what to do where W&B fails."""

import json
import logging
import os
import select
import shlex
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import psutil  # type: ignore[import-untyped]

from arcdist.config import Config
from arcdist.errors import ConfigError, DataError, PlatformError
from arcdist.tracking.metrics import Record, Validation, read_numbers, read_validations
from arcdist.tracking.mirror import Mirror
from arcdist.tracking.rows import Row, make_row, rows_of
from arcdist.tracking.run_folder import Identity
from arcdist.tracking.wandb_keys import BEST_METRIC, WHOLE

INSTALL = "pip install 'arcdist[wandb]'"
"""What a machine without wandb lacks."""

_MAGIC = b":W&B"
_FILE_HEADER = 7  # the magic, two bytes more and the version
_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(kw_only=True, slots=True)
class WandbLog:
    """What one such file holds."""

    id: str | None = None
    """The run's; none where the file ends before it says so."""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The history, in its order; `_step` is W&B's own step."""


def read_log(path: Path) -> WandbLog:
    """Read a file as far as it goes: one that was cut off, or that W&B still writes, lacks its end.

    Raises:
        DataError: it cannot be read, or is no such file.
        PlatformError: wandb is not installed.
    """
    require_wandb(str(path))
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    log = WandbLog()
    for content in _records(path):
        record = Record()
        record.ParseFromString(content)
        match record.WhichOneof("record_type"):
            case "run":
                log.id = record.run.run_id
                _update(log.config, record.run.config.update)
            case "config":
                _update(log.config, record.config.update)
            case "history":
                row: dict[str, Any] = {}
                _update(row, record.history.item)
                log.rows.append(row)
    return log


def require_wandb(place: str) -> None:
    """See that what `place` names can be read.

    Raises:
        PlatformError: wandb is not installed.
    """
    if find_spec("wandb") is None:
        raise PlatformError(f"{place} cannot be read without wandb: {INSTALL}.")


def _records(path: Path) -> Iterator[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): see who may read there.") from error
    if not _MAGIC.startswith(content[: len(_MAGIC)]):  # Less than the magic is a run that was killed at once.
        raise DataError(f"{path} is no file of a W&B run: give the folder as W&B wrote it.")
    position, parts = _FILE_HEADER, b""
    while True:
        if _BLOCK - position % _BLOCK < _HEADER.size:
            position += _BLOCK - position % _BLOCK  # Too short for a header: padded.
        if position + _HEADER.size > len(content):
            return
        checksum, length, kind = _HEADER.unpack_from(content, position)
        part = content[position + _HEADER.size : position + _HEADER.size + length]
        if len(part) < length or checksum != zlib.crc32(part, zlib.crc32(bytes([kind]))):
            return
        position += _HEADER.size + length
        parts = part if kind in (_FULL, _FIRST) else parts + part
        if kind in (_FULL, _LAST):
            yield parts


def _update(values: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *parents, name = item.nested_key or [item.key]
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = json.loads(item.value_json)


Mode: TypeAlias = Literal["offline", "online", "disabled"] | None
"""None means online where W&B finds a key, else offline."""

_OF_W_AND_B: dict[str | None, Mode] = {
    None: None,
    "": None,
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}

_logger = logging.getLogger(__name__)


def wandb_mode(config: Config) -> Mode:
    """What the configuration says; where it says nothing, what `WANDB_MODE` says.

    Raises:
        ConfigError: `WANDB_MODE` is none of W&B's modes.
        PlatformError: W&B is asked for by name, and not installed.
    """
    wanted = config.tracking.wandb
    if wanted != "disabled" and find_spec("wandb") is None:
        if wanted is not None:
            raise PlatformError(
                f"tracking.wandb is {wanted}, but wandb is not installed: {INSTALL}, or --tracking.wandb disabled."
            )
        _logger.info("The run is not kept in W&B, which is not installed: %s.", INSTALL)
        return "disabled"
    if wanted is not None:
        return wanted
    named = os.environ.get("WANDB_MODE")
    if named not in _OF_W_AND_B:
        raise ConfigError(f"WANDB_MODE is {named}: choose online, offline or disabled, or use --tracking.wandb.")
    return _OF_W_AND_B[named]


_CONSOLE = "console.log"
_SECONDS_TO_ANSWER = 120.0
_SECONDS_TO_END = 5.0


class WandbError(Exception):
    """What W&B, or its process, says went wrong."""


class WandbPipe:
    """Such a process, which ends with this one at the latest."""

    def __init__(self, folder: Path) -> None:
        """Start it; what it prints and keeps for uploads lies in `folder`.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(exist_ok=True)
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **{name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            # Copies of what is to be uploaded.
            "WANDB_DATA_DIR": str(folder.resolve() / "data"),
            # Its own logs, which it would write below the folder that the user is in.
            "WANDB_DIR": str(folder.resolve()),
        }
        self._console = folder / _CONSOLE
        self._interrupted = False
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "arcdist.tracking.wandb_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                env=environment,
                # Ctrl-C is for training, which then ends this process in order.
                start_new_session=True,
            )

    def ask(self, order: str, *, patience: float = _SECONDS_TO_ANSWER, **values: Any) -> Any:
        """Have an order of `WandbProcess` carried out, within `patience` seconds.

        Raises:
            WandbError: it failed, or the process did.
        """
        orders, answers = self._pipes()
        try:
            orders.write(json.dumps({"order": order, **values}).encode() + b"\n")
            orders.flush()
            # The answer is one line, and comes whole.
            if not select.select([answers], [], [], patience)[0]:
                raise WandbError(f"no answer for {patience:.0f} s")
            line = answers.readline()
        except (OSError, ValueError) as error:
            raise WandbError(self._end_told(str(error))) from error
        if not line:
            raise WandbError(self._end_told("no answer"))
        answer = json.loads(line)
        if "error" in answer:
            raise WandbError(answer["error"])
        return answer["answer"]

    def interrupt(self) -> None:
        """End it, and what it started, at once; what waits for an answer fails. From any thread."""
        self._interrupted = True
        self._kill()

    def end(self) -> None:
        """End it, in order where it takes no longer than seconds."""
        for pipe in self._pipes():
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def _kill(self) -> None:
        if self._process.poll() is not None:
            return
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        self._process.kill()

    def _end_told(self, how: str) -> str:
        if self._interrupted:
            return "no answer in time for the end of the run"
        return f"its process died: {how}; see {self._console}"

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


INIT_SECONDS = 20.0
"""For W&B's server to answer at the start; training does not wait."""
FINISH_SECONDS = 12.0
"""For what is left to be sent at the end."""


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
