"""Where a run goes on from: which checkpoint, in which folder."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock

from arcdist.checkpoint.store import (
    BEST,
    FILES,
    MANIFEST,
    STATE,
    beside,
    checkpoints,
    clear_leftovers,
    flaw,
    is_numbered,
    mend,
    parse_files,
    read_files,
    save_files,
    set_aside,
    step_folder,
)
from arcdist.config import Config
from arcdist.config.keys import flatten
from arcdist.config.loader import AUTO, DEFAULT_ROOT, NEWEST, newest_run
from arcdist.distributed.environment import is_restart
from arcdist.errors import ConfigError, DataError
from arcdist.files import expanded
from arcdist.tracking.run_folder import held, make_run_folder, own, taken_by

_ASIDE = re.compile(rf"aside_\d+_(step_\d{{8}}|{BEST})")
_Read = TypeVar("_Read")


def is_aside(folder: Path) -> bool:
    """Whether a checkpoint was set aside when its run went on from an earlier one, by its name."""
    return _ASIDE.fullmatch(folder.name) is not None


def checkpoints_of_run(path: Path) -> list[Path]:
    """What is called a checkpoint in a run folder, or in its `checkpoints/`: by step, then the best, then set aside.

    Empty for anything else. The best is named by its own path wherever it lies (`lies_at`).

    Raises:
        DataError: one of the two folders cannot be read.
    """
    run = path.parent if path.name == "checkpoints" and not _is_folder(path / "checkpoints") else path
    best = [run / BEST] if lies_at(run / BEST) else []
    others = sorted(_entries(run / "checkpoints"))
    return [*filter(is_numbered, others), *best, *filter(is_aside, others)]


def lies_at(folder: Path) -> Path | None:
    """Where a checkpoint is to be read; none where there is none.

    That is its own folder, unless a process ended between the two renamings of a replacement: then it is, until
    training puts it back, the new one where that is whole, and the old one where it is not.

    Raises:
        DataError: its folder cannot be read.
    """
    if _exists(folder):
        return folder
    partial, replaced = (beside(folder, what) for what in ("partial", "replaced"))
    if _exists(partial) and flaw(partial) is None:
        return partial
    return replaced if _exists(replaced) else None


def moved(folder: Path, place: Path) -> str:
    """That a checkpoint was read elsewhere, where `lies_at` says so."""
    return f"{folder}: its replacement was cut off, or goes on: {place} is read, and --resume puts it back."


def read_unchanged(folder: Path, read: Callable[[Path], _Read]) -> tuple[Path, _Read] | None:
    """Where a checkpoint lies and what `read` makes of it; none where there is none, or it has gone meanwhile.

    A run that goes on removes its oldest checkpoint, and puts a new best in the place of the old one. What changed
    while it was being read is read again.

    Raises:
        DataError: `read` raises it, of a checkpoint that nobody has changed.
    """
    while (place := lies_at(folder)) is not None:
        before = _identity(place)
        try:
            return place, read(place)
        except DataError:
            if _identity(place) == before:
                raise
    return None


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is meant to be a checkpoint, be it whole or not.

    Raises:
        DataError: it cannot be read.
    """
    place = lies_at(path)
    if place is None or not _is_folder(place):
        return False
    if any(_exists(place / name) for name in (MANIFEST, *FILES)):
        return True
    # One that has lost all its files, unless it is a run that somebody has called so.
    has_its_name = is_numbered(path) or is_aside(path) or path.name == BEST
    return has_its_name and not checkpoints_of_run(path)


def no_checkpoint(path: Path) -> str:
    """Why a path that was given for a checkpoint is none."""
    return no_folder(path, "of a checkpoint, such as runs/NAME/best, or that of a run") or (
        f"{path} is neither a checkpoint (it has no {MANIFEST}) nor a run folder that holds some."
    )


def no_folder(path: Path, wanted: str) -> str | None:
    """Why a path is no folder, with what is wanted, such as "of a run"; none where it is one."""
    if not _exists(path):
        return f"{path}: there is no such folder. Give that {wanted}."
    if target := dead_link(path):
        return f"{path} is a link to {target}, which is not there. Give the folder {wanted}."
    return None if _is_folder(path) else f"{path} is a file, not a folder. Give the folder {wanted}."


def dead_link(path: Path) -> Path | None:
    """What a path links to, if that is not there."""
    with _readable(path):
        return path.readlink() if path.is_symlink() and not path.exists() else None


def _identity(folder: Path) -> int | None:
    try:
        return folder.lstat().st_ino
    except OSError:
        return None


def _is_folder(path: Path) -> bool:
    with _readable(path):
        return path.is_dir()


def _exists(path: Path) -> bool:
    """Whether there is anything of that name, be it a link to nothing."""
    with _readable(path.parent):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def _entries(folder: Path) -> list[Path]:
    with _readable(folder):
        return list(folder.iterdir()) if folder.is_dir() else []


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): see who may read it.") from error


_logger = logging.getLogger(__name__)

_MAY_CHANGE = (
    *("output.", "tracking.", "distributed.", "train.accumulation", "train.device", "train.cpu_threads"),
    *("train.memory_history", "qwen.gradient_checkpointing", "data.source", "data.validation_source"),
)
"""What changes nothing that is computed. Data are compared by their content."""

_WITH_A_WARNING = (
    *("train.epochs", "train.precision", "qwen.dtype", "qwen.model"),
    *("optim.", "reward.", "curriculum.", "efe."),
)
"""What a user may want to change on the way; the curve has a bend there. Another base is told by its checksum."""


def check_configuration(
    config: Config, state: Mapping[str, Any], base: Mapping[str, str], data: Mapping[str, str]
) -> None:
    """Whether a run may go on with this configuration; what bends its curve is logged.

    Args:
        config: of this run.
        state: of the checkpoint.
        base: Qwen's frozen base in this run, as `base_identity` names it.
        data: checksums of this run's tasks, by their role.

    Raises:
        ConfigError: what it may not; both values are named.
        DataError: the state does not say what it is the state of.
    """
    missing = {"config", "data", "base", "step", "epoch", "batch"} - set(state)
    if missing:
        raise DataError(f"The checkpoint's state.json lacks {', '.join(sorted(missing))}: resume from another one.")
    changes = _changes(config, state["config"])
    refused = {name: values for name, values in changes.items() if not name.startswith(_WITH_A_WARNING)}
    if refused:
        named = ", ".join(
            f"{name} is {now}, and the checkpoint's run has {then}" for name, (now, then) in refused.items()
        )
        flags = " ".join(f"--{name} {then}" for name, (_, then) in refused.items())
        raise ConfigError(f"{named}: a run cannot change that on the way. Resume with {flags}, or start a new run.")
    for name, (now, then) in changes.items():
        also = ": the learning rates follow the new length" if name == "train.epochs" else ""
        _logger.warning("%s is %s from here on, no longer %s%s.", name, now, then, also)
    for role, digest in data.items():
        if digest != state["data"][role]:
            raise ConfigError(
                f"The {role} tasks are not those of the checkpoint's run (checksum {digest[:12]}, there "
                f"{state['data'][role][:12]}): name the same ones with --data.source, or start a new run."
            )
    if base["sha256"] != state["base"]["sha256"]:
        raise ConfigError(
            f"Qwen's frozen base is {base['model']} (SHA-256 {base['sha256'][:12]}), and the checkpoint's adapters "
            f"belong to {state['base']['model']} ({state['base']['sha256'][:12]}): give that one with --qwen.model."
        )
    begun = state["epoch"] + (state["batch"] > 0)
    if config.train.epochs < begun:
        raise ConfigError(
            f"train.epochs is {config.train.epochs}, and the checkpoint was taken after {state['step']} steps, in the "
            f"run's epoch {begun}: choose --epochs {begun} or more."
        )


def _changes(config: Config, before: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Each key that matters and differs, with its value now and before as a flag takes it."""
    changes = {}
    for name, value in flatten(config).items():
        # JSON has no tuples. A key that is younger than the checkpoint had its default.
        value = list(value) if isinstance(value, tuple) else value
        if name in before and value != before[name] and not name.startswith(_MAY_CHANGE):
            changes[name] = (_shown(value), _shown(before[name]))
    return changes


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run begins."""

    folder: Path
    """The run folder."""
    checkpoint: Path | None
    """What it goes on from; none for a run from the first step."""
    files: Mapping[str, bytes]
    """The checkpoint's files, verified."""
    lock: BaseFileLock
    """Keeps other runs out of the folder until it is released, or the process ends."""
    is_new: bool = False
    """Whether the folder was made for this run."""
    warnings: tuple[str, ...] = ()
    """What the user has to know of how it was found, for the log, which is not open yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A whole checkpoint."""

    folder: Path
    files: Mapping[str, bytes]
    warnings: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Steps that it was taken after."""
        step: int = json.loads(self.files[STATE])["step"]
        return step


def find_start(directory: str | None, resume: str | None) -> Start:
    """The run folder and the checkpoint that a command line asks for. Only the process that writes files calls this.

    Args:
        directory: `output.dir`.
        resume: `--resume`'s value: none, "newest", "auto", or the path of a checkpoint or of a run folder.

    Raises:
        ConfigError: nothing to resume, or a folder that another run has taken.
        DataError: checkpoints, none of which is whole.
    """
    if resume is None:
        return _from_the_first_step(directory)
    if not resume:
        raise ConfigError("--resume is given an empty path: name a checkpoint or a run, or leave the value out.")
    if resume in (NEWEST, AUTO):
        return _of_folder(directory, resume)
    return _of_path(expanded(resume), directory)


def _from_the_first_step(directory: str | Path | None) -> Start:
    folder = make_run_folder(directory)
    return Start(folder=folder, checkpoint=None, files={}, lock=own(folder), is_new=True)


def _of_folder(directory: str | None, resume: str) -> Start:
    if directory is None:
        if resume == AUTO:
            raise ConfigError("--resume auto needs to know the run's folder: give it with --output_dir FOLDER.")
        newest = newest_run()
        if newest is None:
            raise ConfigError(f"No run in {DEFAULT_ROOT}/ has a checkpoint to resume from: name one with --output_dir.")
        folder = newest
    else:
        folder = expanded(directory)
    if _has_checkpoints(folder):
        return _go_on_in(folder)
    if resume == NEWEST:
        raise ConfigError(
            f"{folder} has no checkpoint to resume from: leave out --resume to start a run, or write --resume auto "
            f"for a command that starts where there is nothing and resumes where there is."
        )
    if folder.exists() and taken_by(folder):
        if not (folder / "config.yaml").exists():
            make_run_folder(folder)  # which refuses: what lies there is no run's
        with held(own(folder)):
            for name in taken_by(folder):
                _remove(folder / name)
        told = f"{folder} held a run that had ended before its first checkpoint: it starts anew."
        return replace(_from_the_first_step(folder), warnings=(told,))
    return _from_the_first_step(folder)


def _of_path(path: Path, directory: str | None) -> Start:
    is_run = path.name == "checkpoints" or _has_checkpoints(path)
    if path.name == "checkpoints":
        path = path.parent
    run = path if is_run else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    stays = directory is None or expanded(directory).resolve() == run.resolve()
    if stays and is_run and path.exists():
        return _go_on_in(path)
    if stays and (run / "config.yaml").exists():
        with held(own(run)):
            mend(path)
    if not is_run and not is_checkpoint(path):
        anew = f" `--output_dir {path} --resume auto` starts this run anew." if (path / "config.yaml").exists() else ""
        raise ConfigError(f"--resume {no_checkpoint(path)}{anew}")
    if not stays:
        return _fork(_newest_of(run) if is_run else _named(path), run, expanded(str(directory)))
    if not (run / "config.yaml").exists():
        raise ConfigError(f"--resume {path}: {run} is no run folder to go on in. Name one with --output_dir FOLDER.")
    found = _named(path)
    lock = own(run)
    clear_leftovers(run / "checkpoints")
    return Start(folder=run, checkpoint=path, files=found.files, lock=lock)


def _go_on_in(run: Path) -> Start:
    """A run's newest checkpoint, in its own folder."""
    lock = own(run)
    try:
        mend(run / BEST)
        clear_leftovers(run / "checkpoints")
        clear_leftovers(run)
        found = _newest_of(run)
    except BaseException:
        with held(lock):
            raise
    return Start(folder=run, checkpoint=found.folder, files=found.files, lock=lock, warnings=found.warnings)


def _fork(found: _Found, run: Path, directory: Path) -> Start:
    """Go on in another folder, in which the run's curve is continued; the run's own is only read."""
    if checkpoints(directory / "checkpoints"):
        if is_restart():  # by a launcher, which repeats the command
            return _go_on_in(directory)
        raise ConfigError(
            f"The output folder {directory} holds another run: go on with that one by leaving out --resume's path, "
            f"or choose another folder with --output_dir FOLDER."
        )
    folder = make_run_folder(directory)
    lock = own(folder)
    if (run / "steps.jsonl").exists():
        shutil.copyfile(run / "steps.jsonl", folder / "steps.jsonl")
    if (run / "validation").exists():
        shutil.copytree(run / "validation", folder / "validation")
    # What is broken, or was the best later on, is no part of the curve that goes on.
    best = _whole(run / BEST)
    if best and best.step <= found.step:
        save_files(folder / BEST, best.files)
    # Last: from here on the folder can be resumed, whenever the run is killed.
    save_files(step_folder(folder / "checkpoints", found.step), found.files)
    return Start(
        folder=folder,
        checkpoint=found.folder,
        files=found.files,
        lock=lock,
        is_new=True,
        warnings=found.warnings,
    )


def _has_checkpoints(run: Path) -> bool:
    """Whether there is anything of a run to go on from, or to lose."""
    best = run / BEST
    places = (best, beside(best, "replaced"), beside(best, "partial"))
    numbered = checkpoints(run / "checkpoints")
    return bool(
        numbered or any((run / "checkpoints").glob("aside_*")) or any((place / MANIFEST).exists() for place in places)
    )


def _newest_of(run: Path) -> _Found:
    """The newest whole checkpoint of a run, or its best one where no other is whole; broken ones are named."""
    root = run / "checkpoints"
    broken: list[str] = []
    for place in (*reversed(checkpoints(root)), run / BEST):
        if not place.is_symlink() and not place.exists():
            continue
        try:
            files = read_files(place)
            parse_files(files, place)
            warnings = tuple(f"{told} The one before it is taken." for told in broken)
            return _Found(folder=place, files=files, warnings=warnings)
        except DataError as error:
            broken.append(str(error))
    raise DataError(
        f"None of the checkpoints in {root} is whole: `launch/checkpoint.py list {run}` says what is wrong with each"
        f"{f' ({broken[0]})' if broken else ''}. "
        f"Resume from one that was set aside by its path, or start a new run with another --output_dir."
    )


def _named(path: Path) -> _Found:
    """The checkpoint that was asked for."""
    try:
        return _Found(folder=path, files=read_files(path))
    except DataError as error:
        raise DataError(f"{error} Resume from another checkpoint: `launch/checkpoint.py list` shows them.") from error


def _whole(folder: Path) -> _Found | None:
    try:
        return _Found(folder=folder, files=read_files(folder))
    except DataError:
        return None


def set_aside_later_ones(folder: Path, step: int) -> bool:
    """Rename a run's checkpoints after `step`, broken ones or of a path that the run now leaves, and say so.

    Returns whether there is such a path.

    The newest one is then always on the run's path, and no broken one is kept in a whole one's place. Nor does the best
    one of a path that is left stay the run's; without such a path, a later best is what the run comes to once more.
    """
    root = folder / "checkpoints"
    later = [checkpoint for checkpoint in checkpoints(root) if checkpoint > step_folder(root, step)]
    leaves_a_path = any(flaw(checkpoint) is None for checkpoint in later)
    best = _whole(folder / BEST)
    if leaves_a_path and best and best.step > step:
        later.append(best.folder)
    for checkpoint in later:
        place = set_aside(checkpoint, root)
        _logger.warning("%s lies after the step to go on from: it is now %s.", checkpoint, place)
    return leaves_a_path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
