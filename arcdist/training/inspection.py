"""Which checkpoints there are, and whether each is as it was written. Nothing is changed, and a run may go on."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from arcdist.errors import ConfigError, DataError
from arcdist.training.checkpoint import FILES, MANIFEST, STATE, checkpoints, read_files

_NAME = re.compile(r"step_\d{8}|best|aside_\d+_step_\d{8}")
_STYLES = {"whole": "green", "broken": "bold red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a checkpoint turned out to be. Where it is broken, its position in the run is not known."""

    folder: Path
    step: int | None
    """Batches trained on."""
    epoch: int | None
    """Counted from 0; with `batch` 0 it has not begun."""
    batch: int | None
    """Batches of this epoch."""
    size: int
    """Bytes of its files."""
    written: datetime
    """In local time."""
    flaw: str | None
    """What is wrong, naming the file; none where it is whole."""

    @property
    def verdict(self) -> str:
        """`whole` or `broken`."""
        return "whole" if self.flaw is None else "broken"


def show_run(path: Path) -> None:
    """Print the table of a run's checkpoints.

    Args:
        path: a run folder, or its `checkpoints/`.

    Raises:
        ConfigError: there is no checkpoint of a run.
        DataError: the newest one is broken.
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
            _say(console, f"{inspection.folder.name}: {inspection.flaw}")
    whole = [inspection.folder for inspection in found if not inspection.flaw]
    if not whole:
        raise DataError("None of the checkpoints is whole: start a new run with another --output_dir.")
    steps = [folder.name for folder in whole if folder.name.startswith("step_")]
    goes_on = f"--resume goes on from {steps[-1]}" if steps else f"--resume {whole[0]} goes on from that one"
    newest = _newest(found)
    if newest.flaw:
        raise DataError(f"The newest checkpoint, {newest.folder.name}, is broken; {goes_on}.")
    _say(console, f"{goes_on}.")


def verify(paths: Sequence[Path]) -> None:
    """Print a line for each checkpoint.

    Args:
        paths: folders of checkpoints, or of runs for all that they hold.

    Raises:
        ConfigError: one is neither; none is inspected then.
        DataError: a checkpoint is broken.
    """
    places = [place for path in paths for place in _checkpoints_at(path)]
    console = Console()
    found = []
    for place in places:
        if inspection := inspect(place):
            found.append(inspection)
            _say(console, _line(inspection))
    broken = [inspection for inspection in found if inspection.flaw]
    if broken:
        raise DataError(f"Broken: {len(broken)} of {len(found)}. Resume from a whole one, and export that.")


def inspect(folder: Path) -> Inspection | None:
    """Read a checkpoint whole and compare it with its checksums; none where it has gone meanwhile."""
    while True:
        try:
            before = folder.stat()
        except FileNotFoundError:
            return None
        inspection = _inspect(folder)
        if inspection.flaw is None:
            return inspection
        with suppress(FileNotFoundError):
            # A run that goes on removes its oldest checkpoint and puts a new best in the place of the old one.
            if folder.stat().st_ino == before.st_ino:
                return inspection


def checkpoints_of_run(path: Path) -> list[Path]:
    """What is called a checkpoint in a run folder, or in its `checkpoints/`: by step, then the best, then set aside.

    Empty for anything else.
    """
    run = path.parent if path.name == "checkpoints" and not (path / "checkpoints").is_dir() else path
    root = run / "checkpoints"
    best = [run / "best"] if (run / "best").is_dir() else []
    return [*checkpoints(root), *best, *sorted(place for place in root.glob("aside_*") if _NAME.fullmatch(place.name))]


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is meant to be a checkpoint, be it whole or not."""
    return path.is_dir() and any((path / name).exists() for name in (MANIFEST, *FILES))


def _checkpoints_at(path: Path) -> list[Path]:
    is_one = is_checkpoint(path) or (path.is_dir() and _NAME.fullmatch(path.name))
    places = [path] if is_one else checkpoints_of_run(path)
    if not places:
        raise ConfigError(no_checkpoint(path))
    return places


def no_checkpoint(path: Path) -> str:
    """Why a path that was given for a checkpoint is none."""
    if not path.is_dir():
        return f"{path}: there is no such folder. Give that of a checkpoint, such as runs/NAME/best, or that of a run."
    return f"{path} is neither a checkpoint (it has no {MANIFEST}) nor a run folder that holds some."


def _no_run(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: there is no such folder. Give that of a run, such as runs/NAME."
    if is_checkpoint(path):
        return f"{path} is a checkpoint, not a run: give the run's folder, or use `checkpoint.py verify {path}`."
    return f"{path} holds no checkpoint, neither checkpoints/step_… nor best/: give the folder of a run that saved one."


def _inspect(folder: Path) -> Inspection:
    state: dict[str, Any] = {}
    flaw = None
    try:
        state = json.loads(read_files(folder)[STATE])
    except DataError as error:
        # The reader knows which folder it is.
        flaw = str(error).replace(f"{folder}/", "")
    return Inspection(
        folder=folder,
        step=state.get("step"),
        epoch=state.get("epoch"),
        batch=state.get("batch"),
        size=sum(_sizes(folder)),
        written=datetime.fromtimestamp(_modified(folder)),
        flaw=flaw,
    )


def _sizes(folder: Path) -> Iterator[int]:
    for name in (MANIFEST, *FILES):
        with suppress(OSError):
            yield (folder / name).stat().st_size


def _modified(folder: Path) -> float:
    for path in (folder / MANIFEST, folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _newest(found: Sequence[Inspection]) -> Inspection:
    """The last step; where there is none, the best."""
    steps = [inspection for inspection in found if inspection.folder.name.startswith("step_")]
    return steps[-1] if steps else found[0]


def _table(found: Sequence[Inspection]) -> Table:
    lines = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    lines.add_column("checkpoint", no_wrap=True)
    for name in ("step", "epoch", "batch", "size"):
        lines.add_column(name, justify="right", no_wrap=True)
    lines.add_column("written", no_wrap=True)
    lines.add_column("verdict", no_wrap=True)
    for inspection in found:
        position = (inspection.step, inspection.epoch, inspection.batch)
        lines.add_row(
            inspection.folder.name,
            *("–" if number is None else str(number) for number in position),
            decimal(inspection.size),
            f"{inspection.written:%Y-%m-%d %H:%M}",
            Text(inspection.verdict, style=_STYLES[inspection.verdict]),
        )
    return lines


def _line(inspection: Inspection) -> Text:
    line = Text(f"{inspection.verdict:<6}", style=_STYLES[inspection.verdict])
    what = inspection.flaw or f"step {inspection.step}, {decimal(inspection.size)}"
    return Text.assemble(line, f"  {inspection.folder}: {what}")


def _say(console: Console, text: str | Text) -> None:
    """A line as it is, however wide the terminal."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)
