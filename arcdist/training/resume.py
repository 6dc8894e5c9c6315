"""Where a run goes on from: which checkpoint, in which folder, and whether the configuration still fits."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from arcdist.config import Config
from arcdist.config.keys import flatten
from arcdist.config.resumed import AUTO, NEWEST, newest_run
from arcdist.errors import ConfigError, DataError
from arcdist.tracking.run_folder import DEFAULT_ROOT, held, make_run_folder, own, taken_by
from arcdist.training.checkpoint import (
    MANIFEST,
    checkpoints,
    clear_leftovers,
    mend,
    read_files,
    step_folder,
)

_logger = logging.getLogger(__name__)

_MAY_CHANGE = (
    *("output.", "distributed.", "train.epochs", "train.accumulation", "train.device", "train.cpu_threads"),
    *("qwen.gradient_checkpointing", "data.source", "data.validation_source"),
)
"""What changes nothing that is computed, or what it is computed for longer. Data are compared by their content."""

_WITH_A_WARNING = ("train.precision", "qwen.dtype", "qwen.model", "optim.", "reward.", "curriculum.", "efe.")
"""What a user may want to change on the way; the curve has a bend there. Another base is told by its checksum."""


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
    if resume in (NEWEST, AUTO):
        return _of_folder(directory, resume)
    return _of_path(Path(resume).expanduser(), directory)


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
        folder = Path(directory).expanduser()
    if checkpoints(folder / "checkpoints"):
        return _newest_of(folder, own(folder))
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
    if not path.exists():
        raise ConfigError(
            f"--resume {path}: there is no such folder. Give that of a checkpoint, such as "
            f"runs/NAME/checkpoints/step_00000050, or that of a run."
        )
    if checkpoints(path / "checkpoints"):
        return _fork(_newest_of(path, own(path)), path, directory)
    if not (path / MANIFEST).exists() and not checkpoints(path.parent):
        raise ConfigError(
            f"--resume {path} is neither a checkpoint (it has no {MANIFEST}) nor a run folder that holds some."
        )
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if directory is None and not (run / "config.yaml").exists():
        raise ConfigError(f"--resume {path}: {run} is no run folder to go on in. Name one with --output_dir FOLDER.")
    try:
        files = read_files(path)
    except DataError as error:
        raise DataError(f"{error} Resume from another checkpoint: `launch/checkpoint.py list` shows them.") from error
    return _fork(Start(folder=run, checkpoint=path, files=files, lock=own(run)), run, directory)


def _fork(start: Start, run: Path, directory: str | None) -> Start:
    """Go on in the run's own folder or in another one, in which its curve is continued."""
    if directory is None or Path(directory).expanduser().resolve() == run.resolve():
        return start
    with held(start.lock):
        folder = make_run_folder(directory)
        if (run / "steps.jsonl").exists():
            shutil.copyfile(run / "steps.jsonl", folder / "steps.jsonl")
    return replace(start, folder=folder, lock=own(folder), is_new=True)


def _newest_of(run: Path, lock: BaseFileLock) -> Start:
    """The newest whole checkpoint of a run; those that are not whole are named."""
    root = run / "checkpoints"
    mend(run / "best")
    clear_leftovers(root)
    clear_leftovers(run)
    broken: list[str] = []
    for checkpoint in reversed(checkpoints(root)):
        try:
            files = read_files(checkpoint)
        except DataError as error:
            broken.append(f"{error} The one before it is taken.")
        else:
            return Start(folder=run, checkpoint=checkpoint, files=files, lock=lock, warnings=tuple(broken))
    with held(lock):
        pass
    raise DataError(
        f"None of the checkpoints in {root} is whole: `launch/checkpoint.py list {run}` says what is wrong with each. "
        f"Start a new run with another --output_dir."
    )


def set_aside_later_ones(folder: Path, step: int) -> None:
    """Rename a run's checkpoints after `step`, broken ones or of a path that the run now leaves, and say so.

    The newest one is then always on the run's path, and no broken one is kept in a whole one's place.
    """
    root = folder / "checkpoints"
    for checkpoint in checkpoints(root):
        if checkpoint > step_folder(root, step):
            aside = (root / f"aside_{number}_{checkpoint.name}" for number in range(1, 10**6))
            free = next(place for place in aside if not place.exists())
            checkpoint.rename(free)
            _logger.warning("%s lies after the step to go on from: it is now called %s.", checkpoint, free.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


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
    missing = {"config", "data", "base", "step", "epoch"} - set(state)
    if missing:
        raise DataError(f"The checkpoint's state.json lacks {', '.join(sorted(missing))}: resume from another one.")
    now, then = flatten(config), state["config"]
    for name, value in now.items():
        # JSON has no tuples. A key that is younger than the checkpoint had its default.
        value = list(value) if isinstance(value, tuple) else value
        if name not in then or value == then[name] or name.startswith(_MAY_CHANGE):
            continue
        if not name.startswith(_WITH_A_WARNING):
            raise ConfigError(
                f"{name} is {_shown(value)}, and the checkpoint's run has {_shown(then[name])}: a run cannot change "
                f"it on the way. Resume with --{name} {_shown(then[name])}, or start a new run."
            )
        _logger.warning("%s is %s from here on, no longer %s.", name, _shown(value), _shown(then[name]))
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
    if (steps := state["step"]) and config.train.epochs < state["epoch"]:
        raise ConfigError(
            f"train.epochs is {config.train.epochs}, and the checkpoint was taken in epoch {state['epoch']} (step "
            f"{steps}): choose more."
        )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
