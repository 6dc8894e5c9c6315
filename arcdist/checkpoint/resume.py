"""How a run is resumed: from which checkpoint, in which folder, and under which configuration."""

import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from arcdist.checkpoint.inspect import is_checkpoint, no_checkpoint_message
from arcdist.checkpoint.store import (
    BEST,
    MANIFEST,
    Snapshot,
    checkpoints,
    clear_leftovers,
    exists,
    finish_replacement,
    flaw,
    lies_at,
    load_checkpoint,
    save_checkpoint,
    step_folder,
)
from arcdist.config import Config
from arcdist.config.keys import flatten
from arcdist.config.loader import AUTO, DEFAULT_ROOT, NEWEST, newest_run, run_of
from arcdist.distributed.environment import is_restart
from arcdist.errors import ConfigError, DataError, SaveError
from arcdist.files import expanded, unwritable
from arcdist.tracking.run_folder import NOT_COMPUTED, discard_run_folder, held, make_run_folder, own, remove, taken_by

_logger = logging.getLogger(__name__)

_WITH_A_WARNING = (
    *("train.epochs", "train.budget_minutes", "train.precision", "qwen.dtype", "qwen.model"),
    *("optim.", "reward.", "curriculum.", "efe."),
)
"""What a user may want to change on the way; the curve has a bend there. Another base is known by its checksum."""

_WITH_OTHER_MOMENTS = ("optim.matrix_optimizer",)
"""Among these keys, but refused: the saved moments are those of the other optimizer."""
_LENGTHS = ("train.epochs", "train.budget_minutes")

_NEEDED = {
    **dict.fromkeys(("step", "epoch", "batch", "skipped", "skipped_in_a_row", "gradients_checked"), int),
    "seconds": float,
    **dict.fromkeys(("memory_gate", "health", "cost", "since_log", "since_epoch", "steps_of_schedules"), dict),
    **dict.fromkeys(("loss_scale", "averaged_agent", "prompts", "config", "data", "base"), dict),
    "epochs": list,
}
"""What a resumed run takes from the state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run begins."""

    folder: Path
    """The run folder."""
    checkpoint: Path | None
    """The folder that the run is resumed from; None for a run from the first step."""
    snapshot: Snapshot | None
    """What is in it, verified."""
    lock: BaseFileLock
    """Keeps other runs out of the folder until it is released, or the process ends."""
    is_new: bool = False
    """Whether the folder was made for this run."""
    warnings: tuple[str, ...] = ()
    """What the user has to know of how it was found, for the log, which is not open yet."""


def find_start(directory: str | None, resume: str | None) -> Start:
    """The run folder and the checkpoint that a command line asks for. Only the process that writes files calls this.

    Args:
        directory: `output.dir`.
        resume: `--resume`'s value: "newest", "auto", or the path of a checkpoint or of a run folder; None to begin.

    Raises:
        ConfigError: nothing to resume, or a folder that another run has taken.
        DataError: checkpoints, none of which is whole.
    """
    if resume is None:
        return _from_the_first_step(directory)
    if not resume:
        raise ConfigError("--resume is given an empty path: name a checkpoint or a run, or leave the value out.")
    if resume in (NEWEST, AUTO):
        return _newest_or_new(directory, resume)
    return _at_path(expanded(resume), directory)


def _from_the_first_step(directory: str | Path | None, *warnings: str) -> Start:
    folder = make_run_folder(directory)
    return Start(folder=folder, checkpoint=None, snapshot=None, lock=own(folder), is_new=True, warnings=warnings)


def _newest_or_new(directory: str | None, resume: str) -> Start:
    if directory is None and resume == AUTO:
        raise ConfigError("--resume auto needs to know the run's folder: give it with --output_dir FOLDER.")
    folder = newest_run() if directory is None else expanded(directory)
    if folder is None:
        raise ConfigError(f"No run in {DEFAULT_ROOT}/ has a checkpoint to resume from: name one with --output_dir.")
    if _has_checkpoints(folder):
        return _in_its_own_folder(folder)
    if resume == NEWEST:
        raise ConfigError(
            f"{folder} has no checkpoint to resume from: leave out --resume to start a run, or write --resume auto "
            f"for a command that starts a run if there is none, and resumes it if there is."
        )
    taken = taken_by(folder)
    if not taken or not (folder / "config.yaml").exists():
        return _from_the_first_step(folder)  # which refuses a folder that holds anything else
    with held(own(folder)):
        remove(folder, taken)
    return _from_the_first_step(
        folder, f"{folder} held a run that had ended before its first checkpoint: it starts again."
    )


def _at_path(path: Path, directory: str | None) -> Start:
    run = run_of(path)
    is_run = _has_checkpoints(run) and run == (path.parent if path.name == "checkpoints" else path)
    checkpoint = None if is_run else path
    if directory is None or expanded(directory).resolve() == run.resolve():
        if is_run or (run / "config.yaml").exists():
            return _in_its_own_folder(run, checkpoint)
        _require_checkpoint(path)
        raise ConfigError(f"--resume {path}: {run} is no run folder to train in. Name one with --output_dir FOLDER.")
    if checkpoint:
        _require_checkpoint(checkpoint)
    return _fork(run, checkpoint, expanded(directory))


def _require_checkpoint(path: Path) -> None:
    if not is_checkpoint(path):
        again = f" `--output_dir {path} --resume auto` starts it again." if (path / "config.yaml").exists() else ""
        raise ConfigError(f"--resume {no_checkpoint_message(path)}{again}")


def _in_its_own_folder(run: Path, checkpoint: Path | None = None) -> Start:
    """Resume a run from one of its checkpoints, or from the newest."""
    lock = own(run)
    try:
        finish_replacement(run / BEST)
        if checkpoint:
            _require_checkpoint(checkpoint)
        clear_leftovers(run / "checkpoints")
        clear_leftovers(run)
        checkpoint, snapshot, warnings = _read(run, checkpoint)
    except BaseException:
        with held(lock):
            raise
    return Start(folder=run, checkpoint=checkpoint, snapshot=snapshot, lock=lock, warnings=warnings)


def _fork(run: Path, checkpoint: Path | None, directory: Path) -> Start:
    """Resume in another folder, in which the run's curve is continued; the run's own is only read."""
    if checkpoints(directory / "checkpoints"):
        if is_restart():  # by a launcher, which repeats the command
            return _in_its_own_folder(directory)
        raise ConfigError(
            f"The output folder {directory} holds another run: resume that one by leaving out --resume's path, "
            f"or choose another folder with --output_dir FOLDER."
        )
    checkpoint, snapshot, warnings = _read(run, checkpoint)
    folder = make_run_folder(directory)
    lock = own(folder)
    try:
        for source in (run / "config.yaml", run / "steps.jsonl", *(run / "validation").glob("*.json")):
            if source.exists():
                copy = folder / source.relative_to(run)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, copy)
        # What is broken, or became the best later on, is no part of the curve that is continued.
        best = _whole(run / BEST)
        if best and best.state["step"] <= snapshot.state["step"]:
            save_checkpoint(folder / BEST, best)
        # Last: from here on the folder can be resumed, whenever the run is killed.
        save_checkpoint(step_folder(folder / "checkpoints", snapshot.state["step"]), snapshot)
    except BaseException as error:
        discard_run_folder(folder)
        lock.release()
        if isinstance(error, OSError):
            elsewhere = "choose another with --output_dir FOLDER"
            raise SaveError(
                unwritable(f"The run folder {folder}", folder, error, snapshot.size, elsewhere=elsewhere)
            ) from error
        raise
    return Start(folder=folder, checkpoint=checkpoint, snapshot=snapshot, lock=lock, is_new=True, warnings=warnings)


def _has_checkpoints(run: Path) -> bool:
    """Whether there is anything of a run to resume, or to lose."""
    root, best = run / "checkpoints", lies_at(run / BEST)
    return bool(checkpoints(root) or any(root.glob("aside_*")) or (best and (best / MANIFEST).exists()))


def _read(run: Path, checkpoint: Path | None) -> tuple[Path, Snapshot, tuple[str, ...]]:
    """A checkpoint or, if none is named, a run's newest whole one, else its best; a warning for each broken one."""
    root = run / "checkpoints"
    broken: list[str] = []
    places = [checkpoint] if checkpoint else [*reversed(checkpoints(root)), *filter(exists, [run / BEST])]
    for place in places:
        try:
            snapshot = load_checkpoint(place, _NEEDED)
            return place, snapshot, tuple(f"{what} The one before it is taken." for what in broken)
        except DataError as error:
            broken.append(str(error))
    if checkpoint:
        raise DataError(f"{broken[0]} Resume from another checkpoint: `launch/checkpoint.py list` shows them.")
    raise DataError(
        f"None of the checkpoints in {root} is whole: `launch/checkpoint.py list {run}` says what is wrong with each"
        f"{f' ({broken[0]})' if broken else ''}. "
        f"Resume from one that was set aside by its path, or start a new run with another --output_dir."
    )


def _whole(folder: Path) -> Snapshot | None:
    try:
        return load_checkpoint(folder, _NEEDED)
    except DataError:
        return None


def set_aside_later_ones(folder: Path, step: int) -> bool:
    """Rename a run's checkpoints after `step`, which are broken or of a path that the run now leaves, and log it.

    The newest one is then always on the run's path, and no broken one is kept in a whole one's place. The best one of
    a path that is left does not stay the run's either; without such a path, the run comes to a later best once more.

    Returns:
        Whether there is such a path.
    """
    root = folder / "checkpoints"
    later = [checkpoint for checkpoint in checkpoints(root) if checkpoint > step_folder(root, step)]
    leaves_a_path = any(flaw(checkpoint) is None for checkpoint in later)
    best = _whole(folder / BEST)
    if leaves_a_path and best and best.state["step"] > step:
        later.append(folder / BEST)
    for checkpoint in later:
        names = (root / f"aside_{number}_{checkpoint.name}" for number in range(1, 10**6))
        aside = checkpoint.rename(next(place for place in names if not place.exists()))
        _logger.warning("%s is later than the step to resume from: it is now %s.", checkpoint, aside)
    return leaves_a_path


def check_configuration(
    config: Config, state: Mapping[str, Any], base: Mapping[str, str], data: Mapping[str, str]
) -> None:
    """Whether a run may be resumed with this configuration; what bends its curve is logged.

    Args:
        config: of this run.
        state: of the checkpoint.
        base: Qwen's frozen base in this run, as `base_identity` names it.
        data: checksums of this run's tasks, by their role.

    Raises:
        ConfigError: what it may not; both values are named.
    """
    changes = _changes(config, state["config"])
    refused = {
        name: values
        for name, values in changes.items()
        if name in _WITH_OTHER_MOMENTS or not name.startswith(_WITH_A_WARNING)
    }
    if refused:
        named = ", ".join(
            f"{name} is {now}, and the checkpoint's run has {then}" for name, (now, then) in refused.items()
        )
        flags = " ".join(f"--{name} {then}" for name, (_, then) in refused.items())
        raise ConfigError(f"{named}: a run cannot change that on the way. Resume with {flags}, or start a new run.")
    for name, (now, then) in changes.items():
        also = ": the learning rates follow the new length" if name in _LENGTHS else ""
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
    begun, minutes = state["epoch"] + (state["batch"] > 0), config.train.budget_minutes
    used = state["seconds"] / 60
    # A run that has used its time is complete, and may be resumed as it is.
    if minutes is not None and "train.budget_minutes" in changes and minutes < used:
        raise ConfigError(
            f"train.budget_minutes is {minutes:g}, and the checkpoint was taken after {used:.2f} minutes: choose "
            f"--budget_minutes {math.ceil(10 * used) / 10} or more."
        )
    if minutes is None and config.train.epochs < begun:
        raise ConfigError(
            f"train.epochs is {config.train.epochs}, and the checkpoint was taken after {state['step']} steps, in the "
            f"run's epoch {begun}: choose --epochs {begun} or more."
        )


def _changes(config: Config, before: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Each key that matters and differs, with its value now and before as a flag takes it."""
    # A key that is younger than the checkpoint had its default.
    then = flatten(Config()) | dict(before)
    return {
        name: (_as_flag(value), _as_flag(then[name]))
        for name, value in flatten(config).items()
        if _as_flag(value) != _as_flag(then[name]) and not name.startswith(NOT_COMPUTED)
    }


def _as_flag(value: object) -> str:
    if isinstance(value, list | tuple):  # JSON has no tuples.
        return ",".join(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
