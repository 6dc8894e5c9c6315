"""Where the checkpoints of a run lie, by the names that training gives them. Nothing is changed: a run may go on."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from arcdist.errors import DataError
from arcdist.training.checkpoint import BEST, FILES, MANIFEST, beside, flaw, is_numbered

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
