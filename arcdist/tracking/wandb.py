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
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from arcdist.config import Config, LoadedConfig
from arcdist.config.keys import config_keys, dotted, flatten
from arcdist.config.loader import KEY_VARIABLES
from arcdist.errors import ArcdistError, ConfigError, DataError, PlatformError, reason
from arcdist.files import expanded
from arcdist.tracking.metrics import Validation, best_epoch, parse_validation, read_numbers, read_validations
from arcdist.tracking.mirror import EPOCH, EPOCH_ONLY, Mirror, Row, make_rows
from arcdist.tracking.run_folder import Identity, parse_identity
from arcdist.tracking.wandb_process import (
    BEST_METRIC,
    GRIDS,
    QUERIES,
    RESULT,
    RUN,
    SHOWN,
    VARIABLES,
    WandbError,
    WandbProcess,
    tags_in,
)

_INSTALL = "pip install 'arcdist[wandb]'"
INIT_SECONDS = 20.0
"""For W&B's server to answer at the start; training does not wait."""
FINISH_SECONDS = 12.0
"""For the rest to be sent at the end."""

Mode: TypeAlias = Literal["offline", "online", "disabled"] | None
"""None means online if W&B finds a key, else offline."""

_MODES: Mapping[str, Mode] = {
    **dict.fromkeys(("online", "run"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    "disabled": "disabled",
}
"""By the value of `WANDB_MODE`."""
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_RESUME = ("allow", "never", "must", "auto")
_NOT_IN_AN_ID = ":;,#?/'"
_LONGEST_TAG, _LONGEST_NAME = 64, 128
"""What W&B accepts."""
_OF_ONE_START = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_RESUME")
"""Variables that say nothing of the run once it is resumed."""

_logger = logging.getLogger(__name__)


def wandb_mode(config: Config) -> tuple[Mode, str]:
    """The mode that the configuration names, else the environment, else `wandb disabled` or `wandb offline`.

    Returns:
        The mode, and where it comes from if it is not the configuration; in words, for the log.

    Raises:
        ConfigError: `WANDB_MODE` is not one of W&B's modes, or `WANDB_DISABLED` neither true nor false.
        PlatformError: W&B is asked for by name, and not installed.
    """
    named = config.tracking.wandb
    mode, where = _mode_around() if named is None else (named, "")
    if mode == "disabled" or find_spec("wandb") is not None:
        return mode, where
    if named is not None:
        raise PlatformError(
            f"tracking.wandb is {named}, but wandb is not installed: {_INSTALL}, or --tracking.wandb disabled."
        )
    return "disabled", f"wandb is not installed ({_INSTALL})"


def _mode_around() -> tuple[Mode, str]:
    """The mode that the environment or W&B's settings name, and where."""
    disabled, named = os.environ.get("WANDB_DISABLED", ""), os.environ.get("WANDB_MODE", "")
    if disabled.lower() not in (*_TRUE, *_FALSE):
        raise ConfigError(f"WANDB_DISABLED is {disabled}: choose true or false, or use --tracking.wandb.")
    if named and named.lower() not in _MODES:
        raise ConfigError(f"WANDB_MODE is {named}: choose online, offline or disabled, or use --tracking.wandb.")
    if disabled.lower() in _TRUE:
        return "disabled", f"WANDB_DISABLED is {disabled}"
    if named:
        return _MODES[named.lower()], f"WANDB_MODE is {named}"
    # W&B's settings of this user, then of this folder, which `wandb disabled` writes below WANDB_DIR if that is set.
    roots = [Path(root) for root in (os.environ.get("WANDB_DIR"), ".") if root]
    folders = [Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")]
    folders += [root / (".wandb" if (root / ".wandb").exists() else "wandb") for root in roots]
    mode: Mode = None
    where = ""
    for path in (folder / "settings" for folder in folders):
        parser = ConfigParser(interpolation=None)
        # W&B itself takes no notice of what cannot be read.
        with suppress(OSError, RuntimeError, ConfigParserError, UnicodeDecodeError):
            parser.read(path.expanduser(), encoding="utf-8")
        found = parser.get("default", "mode", fallback="")
        if found in ("offline", "disabled"):
            mode, where = _MODES[found], f"`wandb {found}` has written so into {path}, and `wandb online` takes it back"
        elif found:
            mode, where = None, ""  # To be online is the default, and takes a key.
    return mode, where


def wandb_variables(loaded: LoadedConfig, before: Mapping[str, str] | None = None, own_id: str = "") -> dict[str, str]:
    """What the environment tells W&B of a run, by variable; empty variables count as not set.

    Args:
        loaded: its configuration, which has precedence.
        before: what a resumed run was given earlier, which stays unless something else is said now.
        own_id: that of a resumed run, which stays in any case.

    Raises:
        ConfigError: W&B would not take a value.
    """
    own = {name: value for name, value in (before or {}).items() if name not in _OF_ONE_START}
    if wandb_mode(loaded.config)[0] == "disabled":
        return own
    given = {name: value for name in VARIABLES if (value := os.environ.get(name))}
    given |= {name: os.environ[name] for key, name in KEY_VARIABLES.items() if loaded.sources[key] == name}
    if loaded.config.tracking.wandb is None and (mode := os.environ.get("WANDB_MODE")):
        given["WANDB_MODE"] = mode
    for key, name in KEY_VARIABLES.items():
        text, kept, where = os.environ.get(name, ""), flatten(loaded.config)[key], loaded.sources[key]
        if text not in ("", kept):
            _logger.info("%s is %s, but %s is %s (%s), which counts.", name, text, key, kept, where)
    if "WANDB_DIR" in given:
        given["WANDB_DIR"] = str(expanded(given["WANDB_DIR"]).absolute())  # The run may be resumed from another folder.
    if own_id:
        given.pop("WANDB_RESUME", None)
        if (named := given.pop("WANDB_RUN_ID", own_id)) != own_id:
            _logger.info("WANDB_RUN_ID is %s, but this run is resumed and keeps its own id, %s.", named, own_id)
        # W&B has to find there what it has of the run.
        place = own.get("WANDB_DIR", "in the run folder")
        if (named := given.pop("WANDB_DIR", place)) != place:
            _logger.info("WANDB_DIR is %s, but this run is resumed and its files for W&B stay %s.", named, place)
    _check_variables(given)
    return own | given


def _check_variables(given: Mapping[str, str]) -> None:
    id, resume = given.get("WANDB_RUN_ID", "id"), given.get("WANDB_RESUME", "allow")
    if id != id.strip() or not id.isprintable() or set(id) & set(_NOT_IN_AN_ID) or len(id) > _LONGEST_NAME:
        raise ConfigError(
            f"WANDB_RUN_ID is {id!r}: choose up to {_LONGEST_NAME} characters without {_NOT_IN_AN_ID} and without "
            f"spaces around them, or unset it for an id of its own."
        )
    if resume not in _RESUME:
        raise ConfigError(f"WANDB_RESUME is {resume}: choose {', '.join(_RESUME[:-1])} or {_RESUME[-1]}, or unset it.")
    for tag in tags_in(given):
        if len(tag) > _LONGEST_TAG:
            raise ConfigError(
                f"WANDB_TAGS has a tag of {len(tag)} characters, {tag[:20]}...: give tags of at most {_LONGEST_TAG}, "
                f"separated by commas."
            )
    if "WANDB_DIR" in given:
        place = Path(given["WANDB_DIR"])
        there = next(path for path in (place, *place.parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise ConfigError(f"WANDB_DIR is {place}, and {there} is no folder that can be written: choose another.")


class WandbMirror(Mirror):
    """Keeps a run in W&B. If that fails, it is kept offline in the run folder, with every row that W&B lacks."""

    name = "W&B"

    def __init__(self, folder: Path, identity: Identity, config: Config, mode: Mode, *, best_metric: str) -> None:
        """Mirror the run in `folder`; nothing happens before `open`."""
        self._folder = folder
        self._place = Path(identity.wandb.get("WANDB_DIR", folder))
        self._mode = mode
        self._id = identity.id
        about = {**asdict(identity), "tags": list(identity.tags), BEST_METRIC: best_metric}
        self._about: dict[str, Any] = {
            "folder": str(self._place.resolve()),
            "project": config.tracking.wandb_project,
            "entity": config.tracking.wandb_entity,
            "variables": about.pop("wandb"),
            "about": about,
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
        self._is_named = "WANDB_RUN_ID" in identity.wandb and not (folder / "steps.jsonl").exists()
        """Whether a run that begins has its id from the user, who may have named another run."""

    @property
    def remedy(self) -> str:
        """How to upload what W&B lacks."""
        return f"`wandb sync {shlex.quote(str(self._place / 'wandb'))}/*run-*-{shlex.quote(self._id)}` uploads it"

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
        self._process = WandbProcess(self._folder / "wandb", self._id)
        if self._killed.is_set():
            self._end_at_once()
        try:
            answer = self._ask("open", mode=mode, **self._about)
        except WandbError:
            self._end()
            raise
        self._has, self._before = set(answer["steps"]), answer["before"]
        if self._is_named and self._before:
            _logger.warning(
                "W&B's run %s, which WANDB_RUN_ID names, has rows of another run up to step %d, so that W&B lacks this "
                "run's until then: unset WANDB_RUN_ID, or name a run that is not there yet.",
                *(self._id, self._before - 1),
            )
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
            f"{path} cannot be read from W&B ({reason(error)}): check the network, the name, or the key "
            f"(`wandb login`)."
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
