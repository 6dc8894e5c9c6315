"""Which checkpoints there are, and whether each is as it was written. Nothing is changed, and a run may be training."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from arcdist.checkpoint.store import BEST, FILES, MANIFEST, Snapshot, exists, is_numbered, lies_at, load_checkpoint
from arcdist.errors import ConfigError, DataError, reason
from arcdist.formatting import DASH

_STYLES = {"whole": "green", "broken": "bold red"}
_POSITION = {"step": int, "epoch": int, "batch": int}
_ASIDE = re.compile(rf"aside_\d+_(step_\d{{8}}|{BEST})")


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({reason(error)}): see who may read it.") from error


def is_aside(folder: Path) -> bool:
    """Whether a checkpoint was set aside when its run was resumed from an earlier one, by its name."""
    return _ASIDE.fullmatch(folder.name) is not None


@_readable()
def is_checkpoint(path: Path) -> bool:
    """Whether a folder is meant to be a checkpoint, whole or not.

    Raises:
        DataError: it cannot be read.
    """
    place = lies_at(path)
    if place is None or not place.is_dir():
        return False
    if any(exists(place / name) for name in (MANIFEST, *FILES)):
        return True
    # One that has lost all its files, unless it is a run that somebody has called so.
    has_its_name = is_numbered(path) or is_aside(path) or path.name == BEST
    return has_its_name and not checkpoints_of_run(path)


@_readable()
def checkpoints_of_run(path: Path) -> list[Path]:
    """What is called a checkpoint in a run folder, or in its `checkpoints/`: by step, then the best, then set aside.

    Empty for anything else. The best is named by its own path, wherever it is at present (`lies_at`).

    Raises:
        DataError: one of the two folders cannot be read.
    """
    run = path.parent if path.name == "checkpoints" and not (path / "checkpoints").is_dir() else path
    best = [run / BEST] if lies_at(run / BEST) else []
    folder = run / "checkpoints"
    others = sorted(folder.iterdir()) if folder.is_dir() else []
    return [*filter(is_numbered, others), *best, *filter(is_aside, others)]


def moved_message(folder: Path, place: Path) -> str:
    """That a checkpoint was read elsewhere, because of `lies_at`."""
    return f"{folder}: its replacement was cut off, or continues: {place} is read, and --resume puts it back."


@_readable()
def load_unchanged(folder: Path, needed: Mapping[str, type]) -> tuple[Path, Snapshot] | None:
    """Where a checkpoint lies and what it holds; None if there is none, or it was removed meanwhile.

    A run that is training removes its oldest checkpoint, and replaces its best. What changed while it was being read
    is read again.

    Args:
        folder: of the checkpoint.
        needed: keys that its state must have, each with the type of its value.

    Raises:
        DataError: the checkpoint is broken.
    """

    def identity(place: Path) -> int | None:
        with suppress(OSError):
            return place.lstat().st_ino
        return None

    while (place := lies_at(folder)) is not None:
        before = identity(place)
        try:
            return place, load_checkpoint(place, needed)
        except DataError:
            if identity(place) == before:
                raise
    return None


def best_whole(path: Path, needed: Mapping[str, type]) -> tuple[Path, Path, Snapshot, list[str]]:
    """The checkpoint that a path means, as it is called, where it lies, what it holds, and the flaws of better ones.

    Args:
        path: a checkpoint, or a run folder for its `best/` or, if there is none, its newest whole checkpoint.
        needed: keys that its state must have, each with the type of its value.

    Raises:
        ConfigError: `path` is no checkpoint.
        DataError: the checkpoint is broken; the message says how.
    """
    broken = []
    for folder in _candidates(path):
        try:
            found = load_unchanged(folder, needed)
        except DataError as error:
            broken.append(str(error))
            continue
        if found:
            return folder, *found, broken
    reasons = " ".join(broken) or f"{path} was removed meanwhile."
    raise DataError(f"{reasons} Take another checkpoint: `launch/checkpoint.py list` shows them.")


def _candidates(path: Path) -> list[Path]:
    """What a path means: a checkpoint itself; of a run the best one or, if there is none, all others, newest first."""
    if is_checkpoint(path):
        return [path]
    places = checkpoints_of_run(path)
    if not places:
        raise ConfigError(no_checkpoint_message(path))
    best = [place for place in places if place.name == BEST]
    # What was set aside is older, in the run's own order, than what it has saved since.
    return best or ([*filter(is_numbered, places)] or places)[::-1]


def no_checkpoint_message(path: Path) -> str:
    """Why a path that was given for a checkpoint is none."""
    if not path.is_dir():
        return f"{path}: there is no such folder. Give that of a checkpoint, such as runs/NAME/best, or that of a run."
    return f"{path} is neither a checkpoint (it has no {MANIFEST}) nor a run folder that holds some."


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a checkpoint turned out to be."""

    folder: Path
    """What it is called."""
    place: Path
    """Where it was read: its folder, unless it was being replaced."""
    position: Mapping[str, int]
    """Batches trained on (`step`), `epoch` from 0, and `batch` within that epoch; empty if the checkpoint is broken."""
    size: int
    """Bytes of its files."""
    written: datetime | None
    """When its manifest was, in local time; None if there is none."""
    flaw: str | None
    """What is wrong, naming the file; None if it is whole."""

    @property
    def verdict(self) -> str:
        """`whole` or `broken`."""
        return "whole" if self.flaw is None else "broken"


def inspect(folder: Path) -> Inspection | None:
    """Read a checkpoint whole and compare it with its checksums; None if it was removed meanwhile."""
    place, flaw = folder, None
    position: Mapping[str, int] = {}
    try:
        found = load_unchanged(folder, _POSITION)
        if found is None:
            return None
        place, snapshot = found
        position = {name: snapshot.state[name] for name in _POSITION}
    except DataError as error:
        place = lies_at(folder) or folder
        # The reader knows which folder it is.
        flaw = str(error).replace(f"{folder}/", "")
    files = [stat for name in (MANIFEST, *FILES) if (stat := _stat(place / name))]
    manifest = _stat(place / MANIFEST)
    return Inspection(
        folder=folder,
        place=place,
        position=position,
        size=sum(stat.st_size for stat in files),
        written=datetime.fromtimestamp(manifest.st_mtime) if manifest else None,
        flaw=flaw,
    )


def _stat(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None


def show_run(path: Path) -> None:
    """Print the table of a run's checkpoints.

    Args:
        path: a run folder, or its `checkpoints/`.

    Raises:
        ConfigError: there is no checkpoint of a run.
        DataError: the newest one is broken, or the run cannot be read.
    """
    places = checkpoints_of_run(path)
    if not places:
        raise ConfigError(_no_run(path))
    found = [inspection for place in places if (inspection := inspect(place))]
    console = Console()
    console.print(_table(found))
    console.print()
    for inspection in found:
        if inspection.flaw:
            console.out(f"{inspection.folder.name}: {inspection.flaw}", highlight=False)
        if inspection.place != inspection.folder:
            console.out(moved_message(inspection.folder, inspection.place), highlight=False)
    whole = [inspection.folder for inspection in found if not inspection.flaw]
    if not whole:
        raise DataError("None of the checkpoints is whole: start a new run with another --output_dir.")
    steps = [folder.name for folder in whole if is_numbered(folder)]
    resumes = f"--resume continues from {steps[-1]}" if steps else f"--resume {whole[0]} continues from that one"
    newest = ([inspection for inspection in found if is_numbered(inspection.folder)] or found[:1])[-1]
    if newest.flaw:
        raise DataError(f"The newest checkpoint, {newest.folder.name}, is broken; {resumes}.")
    console.out(f"{resumes}.", highlight=False)


def verify(paths: Sequence[Path]) -> None:
    """Print a line for each checkpoint.

    Args:
        paths: folders of checkpoints, or of runs for all that they hold.

    Raises:
        ConfigError: one is neither; none is inspected then.
        DataError: a checkpoint is broken, or a folder cannot be read.
    """
    places = []
    for path in paths:
        places += (here := [path] if is_checkpoint(path) else checkpoints_of_run(path))
        if not here:
            raise ConfigError(no_checkpoint_message(path))
    console = Console()
    flaws = []
    for inspection in filter(None, map(inspect, places)):
        flaws.append(inspection.flaw)
        what = inspection.flaw or f"step {inspection.position['step']}, {decimal(inspection.size)}"
        console.print(Text(f"{inspection.verdict:<6}", style=_STYLES[inspection.verdict]), end="  ")
        console.out(f"{inspection.folder}: {what}", highlight=False)
        if inspection.place != inspection.folder:
            console.out(f"        {moved_message(inspection.folder, inspection.place)}", highlight=False)
    if any(flaws):
        broken = sum(flaw is not None for flaw in flaws)
        raise DataError(f"Broken: {broken} of {len(flaws)}. Resume from a whole one, and export that.")


def _no_run(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: there is no such folder. Give that of a run, such as runs/NAME."
    if is_checkpoint(path):
        return f"{path} is a checkpoint, not a run: give the run's folder, or use `checkpoint.py verify {path}`."
    return f"{path} holds no checkpoint, neither checkpoints/step_… nor best/: give the folder of a run that saved one."


def _table(found: Sequence[Inspection]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("checkpoint", no_wrap=True)
    for name in (*_POSITION, "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("written", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for inspection in found:
        table.add_row(
            inspection.folder.name,
            *(str(inspection.position.get(name, DASH)) for name in _POSITION),
            decimal(inspection.size),
            f"{inspection.written:%Y-%m-%d %H:%M}" if inspection.written else DASH,
            Text(inspection.verdict, style=_STYLES[inspection.verdict]),
        )
    return table
