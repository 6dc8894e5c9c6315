"""Runs read back from W&B: from what an offline run left in a folder, or in several, and from the server."""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from arcdist.analysis.record import RunRecord, flat
from arcdist.config.keys import config_keys
from arcdist.errors import ConfigError, DataError
from arcdist.tracking.metrics import TrainingMetricsTracker, Validation
from arcdist.tracking.rows import records_of
from arcdist.tracking.run_folder import parse_identity
from arcdist.tracking.wandb_keys import BEST_METRIC, QUERIES, RUN, SHOWN, WHOLE
from arcdist.tracking.wandb_run import WandbError, WandbLog, WandbPipe, read_log, require_wandb
from arcdist.tracking.wandb_tables import validation_of


def make_record(
    place: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], validations: Sequence[Validation]
) -> RunRecord:
    """A run from W&B's configuration and its rows by step.

    Raises:
        ConfigError: it is none of arcdist's.
        DataError: it holds no row.
    """
    try:
        identity = parse_identity(config[RUN])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{place} is no run of arcdist: its configuration in W&B lacks `{RUN}`. Give a run of arcdist."
        ) from error
    if not rows:
        raise DataError(f"{place} holds no logged step yet: wait until the run has made --output.log_every steps.")
    whole = frozenset(config[RUN].get(WHOLE, ()))
    records = [records_of(row, whole) for row in rows]
    tracker = TrainingMetricsTracker(Path(place), config[RUN].get(BEST_METRIC, "val/exact"), writes=False)
    for _, epoch in records:
        if epoch is not None:
            tracker.log_epoch(epoch)
    return RunRecord(
        place=place,
        identity=identity,
        config=dict(_flat_config(config)),
        steps=tuple(step for step, _ in records if step is not None),
        epochs=tuple(tracker.epochs),
        best=tracker.best,
        validations=tuple(validations),
    )


def validations_in(
    place: str, row: Mapping[str, Any], read_table: Callable[[str], Mapping[str, Any] | None]
) -> Iterator[Validation]:
    """The validation of a row, where it has one; `read_table` gives the content of a table by its path, if it is there.

    Raises:
        DataError: the tables are none of a validation.
    """
    queries, shown = (
        read_table(row[name]["path"]) if isinstance(row.get(name), dict) else None for name in (QUERIES, SHOWN)
    )
    if queries is None:
        return
    try:
        yield validation_of(row["epoch"], row["_step"], queries, shown)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{place}: the tables of step {row['_step']} are no validation ({error!r}): leave that run out."
        ) from error


def _flat_config(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    keys = config_keys()
    for name, value in flat({part: value for part, value in config.items() if part not in (RUN, "_wandb")}):
        # A server may keep 1.0 as 1.
        is_float = name in keys and float in (keys[name].type, *getattr(keys[name].type, "__args__", ()))
        yield name, float(value) if is_float and isinstance(value, int) else value


_FOLDERS = "*run-*-"
"""`offline-run-20260102_030405-ID`, and `run-20260102_030405-ID` where it was online."""
_PATH = re.compile(r"[^/\s.~][^/\s]*/[^/\s]+/[^/\s]+")
"""`entity/project/run_id`; a path that begins with a dot or a tilde is one of this machine."""
_SECONDS_TO_READ = 900.0
"""For all of a run: its tables come one by one."""


def steps_in(folder: Path, id: str) -> frozenset[int]:
    """The steps of a run whose rows W&B's folder in its run folder holds, as far as files that were cut off go."""
    return frozenset(row["_step"] for _, log in _logs(folder.glob(f"{_FOLDERS}{id}*")) for row in log.rows)


def is_wandb_folder(folder: Path) -> bool:
    """Whether W&B wrote a folder: that of a run, or the one that holds those."""
    return any(folder.glob("run-*.wandb")) or any(folder.glob(f"{_FOLDERS}*/run-*.wandb"))


def is_wandb_path(name: str) -> bool:
    """Whether a name is that of a run on W&B's server: `entity/project/run_id`, and no path here.

    What is on this disk wins; so does what would lie in a folder that is, which is then a mistyped path.
    """
    return _PATH.fullmatch(name) is not None and not Path(name).exists() and not Path(name).parent.is_dir()


def read_wandb_folder(folder: Path) -> RunRecord:
    """Read a run from the folders that W&B wrote for it.

    Args:
        folder: one of them, such as `offline-run-20260102_030405-ID`, or the one that holds them, such as
            `RUN/wandb`. Those of one run belong together: a run that was resumed has several.

    Raises:
        ConfigError: W&B wrote no such folder, or those of several runs.
        DataError: it holds no logged step, or is broken.
        PlatformError: wandb is not installed.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Give that of a W&B run, such as runs/NAME/wandb.")
    own = next((log.id for _, log in _logs([folder])), "")
    # One that was renamed is read all the same.
    folders = {folder, *folder.parent.glob(f"{_FOLDERS}{own}*")} if own else set(folder.glob(f"{_FOLDERS}*"))
    logs = [(place, log) for place, log in _logs(folders) if log.id is not None]
    ids = sorted({str(log.id) for _, log in logs})
    if len(ids) > 1:
        raise ConfigError(f"{folder} holds several runs ({', '.join(ids)}): give the folder of one of them.")
    if not logs:
        raise ConfigError(f"{folder} is no folder of a W&B run: it holds no run-ID.wandb, or an empty one.")
    config: dict[str, Any] = {}
    whole: set[str] = set()
    rows: dict[int, tuple[Path, Mapping[str, Any]]] = {}
    for place, log in logs:
        config |= log.config
        whole |= set(log.config.get(RUN, {}).get(WHOLE, ()))
        rows |= {row["_step"]: (place, row) for row in log.rows}
    if RUN in config:
        config[RUN] = {**config[RUN], WHOLE: sorted(whole)}
    return make_record(
        str(folder),
        config,
        [row for _, (_, row) in sorted(rows.items())],
        [
            validation
            for _, (place, row) in sorted(rows.items())
            for validation in validations_in(str(place), row, partial(_read_table, place / "files"))
        ],
    )


def read_wandb_run(path: str, *, seconds: int = 20) -> RunRecord:
    """Read a run from W&B's server.

    Args:
        path: `entity/project/run_id`, as in the address of its page.
        seconds: that the server has for an answer.

    Raises:
        ConfigError: the path is none of W&B, or the run is none of arcdist's.
        DataError: there is no network, no key or no such run, or it holds no logged step.
        PlatformError: wandb is not installed.
    """
    if not is_wandb_path(path):
        raise ConfigError(f"{path} is no W&B run: give ENTITY/PROJECT/RUN_ID, as in the address of its page.")
    require_wandb(path)
    with tempfile.TemporaryDirectory() as folder:
        pipe = WandbPipe(Path(folder))
        try:
            found = pipe.ask("read", patience=_SECONDS_TO_READ, path=path, seconds=seconds)
        except WandbError as error:
            raise DataError(
                f"{path} cannot be read from W&B ({error}): see to the network, the name, or the key (`wandb login`)."
            ) from error
        finally:
            pipe.end()
    rows = sorted(found["rows"], key=lambda row: int(row["_step"]))
    tables = found["tables"]
    validations = [validation for row in rows for validation in validations_in(path, row, tables.get)]
    return make_record(path, found["config"], rows, validations)


def _logs(folders: Iterable[Path]) -> Iterator[tuple[Path, WandbLog]]:
    """By the time that their names tell."""
    for folder in sorted(folders, key=lambda folder: folder.name.removeprefix("offline-")):
        for path in folder.glob("run-*.wandb"):
            yield folder, read_log(path)


def _read_table(files: Path, path: str) -> Mapping[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((files / path).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{files / path} is no table of W&B ({error}): move it away; the rest is read without it."
        ) from error
    return content
