"""The run in W&B: its mirror, and the reader of `entity/project/run_id`.

W&B itself works in a separate process, `wandb_process.py`: if its server hangs or that process dies, the run is
continued offline by a new one, and nothing that W&B does at an exit or at a signal reaches training.
"""

import json
import logging
import os
import re
import shlex
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from arcdist.config import Config
from arcdist.config.keys import config_keys, dotted
from arcdist.errors import ArcdistError, ConfigError, DataError, PlatformError
from arcdist.tracking.metrics import Validation, best_epoch, parse_validation, read_numbers, read_validations
from arcdist.tracking.mirror import EPOCH, EPOCH_ONLY, Mirror, Row, make_rows
from arcdist.tracking.run_folder import Identity, parse_identity
from arcdist.tracking.wandb_process import BEST_METRIC, GRIDS, QUERIES, RESULT, RUN, SHOWN, WandbError, WandbProcess

_INSTALL = "pip install 'arcdist[wandb]'"
INIT_SECONDS = 20.0
"""For W&B's server to answer at the start; training does not wait."""
FINISH_SECONDS = 12.0
"""For the rest to be sent at the end."""

Mode: TypeAlias = Literal["offline", "online", "disabled"] | None
"""None means online if W&B finds a key, else offline."""

_MODES: Mapping[str | None, Mode] = {
    **dict.fromkeys((None, "")),
    **dict.fromkeys(("online", "run"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    "disabled": "disabled",
}
"""By the value of `WANDB_MODE`."""

_logger = logging.getLogger(__name__)


def wandb_mode(config: Config) -> Mode:
    """The mode that the configuration names, else `WANDB_MODE`.

    Raises:
        ConfigError: `WANDB_MODE` is not one of W&B's modes.
        PlatformError: W&B is asked for by name, and not installed.
    """
    mode = config.tracking.wandb
    if mode != "disabled" and find_spec("wandb") is None:
        if mode is not None:
            raise PlatformError(
                f"tracking.wandb is {mode}, but wandb is not installed: {_INSTALL}, or --tracking.wandb disabled."
            )
        _logger.info("The run is not kept in W&B, which is not installed: %s.", _INSTALL)
        return "disabled"
    if mode is not None:
        return mode
    named = os.environ.get("WANDB_MODE")
    if named not in _MODES:
        raise ConfigError(f"WANDB_MODE is {named}: choose online, offline or disabled, or use --tracking.wandb.")
    return _MODES[named]


class WandbMirror(Mirror):
    """Keeps a run in W&B. If that fails, it is kept offline in the run folder, with every row that W&B lacks."""

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
            "about": {**asdict(identity), "tags": list(identity.tags), BEST_METRIC: best_metric},
            "config": asdict(config),
            "init_seconds": INIT_SECONDS,
            "finish_seconds": FINISH_SECONDS,
        }
        self._process: WandbProcess | None = None
        self._killed = threading.Event()
        self._failed = False
        self._online = mode != "offline"
        self._has: set[int] = set()
        """Steps whose rows W&B has; online, also all `_before` one."""
        self._before = 0
        self._last = 0
        """The last step that was to be logged."""

    @property
    def remedy(self) -> str:
        """How to upload what W&B lacks."""
        return f"`wandb sync {shlex.quote(str(self._folder / 'wandb'))}/*run-*-{self._id}` uploads it"

    def open(self) -> None:
        """Begin the run, or continue it."""
        try:
            self._begin(self._mode)
        except WandbError as error:
            self._go_offline(error)

    def log(self, row: Row) -> None:
        """Log the row of a step, unless W&B has it."""
        if row.step >= self._before and row.step not in self._has:
            try:
                self._ask("log", **{**asdict(row), "plot": str(row.plot) if row.plot else None})
            except WandbError as error:
                self._go_offline(error)
                self.log(row)
            self._has.add(row.step)
        self._last = max(self._last, row.step)

    def log_best(self, folder: Path) -> None:
        """Upload a checkpoint as the best so far."""
        try:
            self._ask("log_best", folder=str(folder.resolve()))
        except WandbError as error:  # The numbers are worth more.
            _logger.warning("W&B lacks the best checkpoint so far (%s): it is in %s.", error, folder)

    def close(self, exit_code: int) -> None:
        """Send the rest, and end the run."""
        try:
            self._ask("finish", exit_code=exit_code)
        finally:
            self._end()
        if not self._online:
            _logger.info("The run is kept for W&B in its folder: %s.", self.remedy)

    def interrupt(self) -> None:
        """End an online process at once, so that the rest is kept offline; what W&B has flushed stays in the folder."""
        if not self._failed:
            self._end_at_once()

    def kill(self) -> None:
        """End W&B's process for good."""
        self._killed.set()
        self._end_at_once()

    def _end_at_once(self) -> None:
        if (process := self._process) is not None:
            process.interrupt()

    def _begin(self, mode: Mode) -> None:
        self._process = WandbProcess(self._folder / "wandb")
        if self._killed.is_set():
            self._end_at_once()
        try:
            answer = self._ask("open", mode=mode, **self._about)
        except WandbError:
            self._end()
            raise
        self._has, self._before = set(answer["steps"]), answer["before"]
        self._online = answer["url"] is not None
        if self._online:
            _logger.info("The run is kept in W&B: %s", answer["url"])

    def _go_offline(self, error: WandbError) -> None:
        self._end()
        if self._failed or self._killed.is_set():
            raise error
        self._failed = True
        fix = "Check the network, or the key with `wandb login --relogin`; then " if self._online else ""
        _logger.warning(
            "W&B failed (%s): from now on the run is kept for it in the run folder. %s%s.", error, fix, self.remedy
        )
        self._begin("offline")
        # The run folder has what W&B was given and did not write; later rows are still to come.
        steps, metrics = read_numbers(self._folder)
        for row in make_rows(steps, metrics["epochs"], read_validations(self._folder)):
            if row.step <= self._last:
                self.log(row)

    def _ask(self, order: str, **values: Any) -> Any:
        if self._process is None:
            raise WandbError("the run has ended")
        return self._process.ask(order, **values)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


def is_wandb_path(name: str) -> bool:
    """Whether a name is that of a run on W&B's server, `entity/project/run_id`, and no path here.

    A path that begins with a dot or a tilde is one of this machine, and so is one that exists or whose folder exists,
    which is then mistyped.
    """
    looks_like_one = re.fullmatch(r"[^/\s.~][^/\s]*/[^/\s]+/[^/\s]+", name) is not None
    return looks_like_one and not Path(name).exists() and not Path(name).parent.is_dir()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """What a run is, and its numbers."""

    identity: Identity
    config: Mapping[str, Any]
    """By dotted key."""
    steps: tuple[Mapping[str, Any], ...]
    """The logged steps: the objects of `steps.jsonl`, by step; W&B may keep 1.0 as 1."""
    epochs: tuple[Mapping[str, Any], ...]
    """The records of `metrics.json`, by epoch."""
    best: Mapping[str, Any]
    """The record of the best epoch and `metric`, its measure; empty before the first validation."""
    validations: tuple[Validation, ...]
    """By epoch; epochs without a validation are missing."""


def read_wandb_run(path: str, *, seconds: int = 20) -> RunData:
    """Read a run from W&B's server.

    Args:
        path: `entity/project/run_id`, as in the address of its page.
        seconds: that the server has for an answer.

    Raises:
        ConfigError: the path has another form, or the run is not one of arcdist.
        DataError: there is no network, no key or no such run, or it holds no logged step.
        PlatformError: wandb is not installed.
    """
    if not is_wandb_path(path):
        raise ConfigError(f"{path} is not a W&B run: give ENTITY/PROJECT/RUN_ID, as in the address of its page.")
    if find_spec("wandb") is None:
        raise PlatformError(f"{path} cannot be read without wandb: {_INSTALL}.")
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        if not wandb.login(prompt=False, verify=False):
            raise ValueError("there is no key")
        run = wandb.Api(timeout=seconds).run(path)
        rows = sorted(run.scan_history(), key=lambda row: int(row["_step"]))
        files = {row[name]["path"] for row in rows for name in (QUERIES, SHOWN) if row.get(name)}
        tables = {}
        with tempfile.TemporaryDirectory() as folder:
            for file in files:
                with run.file(file).download(root=folder, replace=True) as content:
                    tables[file] = json.load(content)
        return parse_wandb_run(path, dict(run.config), rows, tables)
    except ArcdistError:
        raise
    except Exception as error:  # W&B raises its own errors, those of its transport, and built-in ones
        raise DataError(
            f"{path} cannot be read from W&B ({error}): check the network, the name, or the key (`wandb login`)."
        ) from error
    finally:
        wandb.teardown()


def parse_wandb_run(
    path: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], tables: Mapping[str, Mapping[str, Any]]
) -> RunData:
    """A run from its configuration, its history by step and its tables by their path, as W&B's server gives them.

    Raises:
        ConfigError: it is not a run of arcdist.
        DataError: it holds no row.
        AttributeError, KeyError, TypeError, ValueError: its tables are not those of a validation.
    """
    try:
        identity = parse_identity(config[RUN])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a run of arcdist: its configuration in W&B lacks `{RUN}`. Give a run of arcdist."
        ) from error
    if not rows:
        raise DataError(f"{path} holds no logged step yet: wait until the run has made --output.log_every steps.")
    steps, epochs, validations = [], [], []
    for row in rows:
        # Names with an underscore are W&B's own; mappings are tables and pictures.
        numbers = {name: value for name, value in row.items() if name[0] != "_" and not isinstance(value, Mapping)}
        epoch = {name: numbers.pop(name) for name in list(numbers) if name.startswith((EPOCH, *EPOCH_ONLY))}
        if numbers.get("step") is not None:
            steps.append(numbers)
        if any(value is not None for value in epoch.values()):
            epochs.append({"epoch": row["epoch"], **{name.removeprefix(EPOCH): epoch[name] for name in epoch}})
        queries, shown = (tables.get(row[name]["path"]) if row.get(name) else None for name in (QUERIES, SHOWN))
        if queries is not None:
            validations.append(_parse_tables(row["epoch"], row["_step"], queries, shown))
    floats = {key.name for key in config_keys().values() if float in (key.type, *get_args(key.type))}
    settings = dotted({name: section for name, section in config.items() if name not in (RUN, "_wandb")})
    # W&B keeps 1.0 as 1.
    settings |= {name: float(settings[name]) for name in floats & settings.keys() if settings[name] is not None}
    epochs = sorted({epoch["epoch"]: epoch for epoch in epochs}.values(), key=itemgetter("epoch"))
    return RunData(
        identity=identity,
        config=settings,
        steps=tuple(steps),
        epochs=tuple(epochs),
        best=best_epoch(epochs, config[RUN].get(BEST_METRIC, "val/exact")),
        validations=tuple(validations),
    )


def _parse_tables(epoch: int, step: int, queries: Mapping[str, Any], shown: Mapping[str, Any] | None) -> Validation:
    results = [dict(zip(queries["columns"], row, strict=True)) for row in queries["data"]]
    pictured = [dict(zip(shown["columns"], row, strict=True)) for row in shown["data"]] if shown else []
    return parse_validation(
        {
            "epoch": epoch,
            "step": step,
            "results": {result["id"]: {key: result[key] for key in RESULT} for result in results},
            "shown": [{"id": row["id"], **json.loads(row[GRIDS])} for row in pictured],
        }
    )
