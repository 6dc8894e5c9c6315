"""Where a run goes on from: which checkpoint, in which folder."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import BaseFileLock

from arcdist.config.resumed import AUTO, DEFAULT_ROOT, NEWEST, newest_run
from arcdist.distributed.environment import is_restart
from arcdist.errors import ConfigError, DataError
from arcdist.paths import expanded
from arcdist.tracking.run_folder import held, make_run_folder, own, taken_by
from arcdist.training.checkpoint import (
    BEST,
    MANIFEST,
    STATE,
    beside,
    checkpoints,
    clear_leftovers,
    flaw,
    mend,
    parse_files,
    read_files,
    save_files,
    set_aside,
    step_folder,
)
from arcdist.training.places import is_checkpoint, no_checkpoint

_logger = logging.getLogger(__name__)


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
