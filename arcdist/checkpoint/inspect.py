"""Which checkpoints there are, and whether each is as it was written. Nothing is changed, and a run may go on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open

from arcdist.checkpoint.resume import (
    checkpoints_of_run,
    dead_link,
    is_checkpoint,
    lies_at,
    moved,
    no_checkpoint,
    no_folder,
    read_unchanged,
)
from arcdist.checkpoint.store import (
    FILES,
    MANIFEST,
    MOMENTS,
    PROMPTS,
    STATE,
    WEIGHTS,
    is_numbered,
    read_files,
    read_state,
)
from arcdist.errors import ConfigError, DataError
from arcdist.formatting import DASH

_STYLES = {"whole": "green", "broken": "bold red"}
_POSITION = {"step": int, "epoch": int, "batch": int}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a checkpoint turned out to be. Where it is broken, its position in the run is not known."""

    folder: Path
    """What it is called."""
    place: Path
    """Where it was read: its folder, unless it was being replaced."""
    step: int | None
    """Batches trained on."""
    epoch: int | None
    """Counted from 0; with `batch` 0 it has not begun."""
    batch: int | None
    """Batches of this epoch."""
    size: int
    """Bytes of its files."""
    written: datetime | None
    """In local time; none where no file says."""
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
            _say(console, f"{inspection.folder.name}: {inspection.flaw}")
        if inspection.place != inspection.folder:
            _say(console, moved(inspection.folder, inspection.place))
    whole = [inspection.folder for inspection in found if not inspection.flaw]
    if not whole:
        raise DataError("None of the checkpoints is whole: start a new run with another --output_dir.")
    steps = [folder.name for folder in whole if is_numbered(folder)]
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
        DataError: a checkpoint is broken, or a folder cannot be read.
    """
    places = [place for path in paths for place in _checkpoints_at(path)]
    console = Console()
    found = []
    for place in places:
        if inspection := inspect(place):
            found.append(inspection)
            _say(console, _line(inspection))
            if inspection.place != inspection.folder:
                _say(console, f"        {moved(inspection.folder, inspection.place)}")
    broken = [inspection for inspection in found if inspection.flaw]
    if broken:
        raise DataError(f"Broken: {len(broken)} of {len(found)}. Resume from a whole one, and export that.")


def inspect(folder: Path) -> Inspection | None:
    """Read a checkpoint whole and compare it with its checksums; none where it has gone meanwhile."""
    place, flaw = folder, None
    position: Mapping[str, int] = {}
    try:
        found = read_unchanged(folder, _read_position)
        if found is None:
            return None
        place, position = found
    except DataError as error:
        with suppress(DataError):
            place = lies_at(folder) or folder
        # The reader knows which folder it is.
        flaw = str(error).replace(f"{folder}/", "")
    return Inspection(
        folder=folder,
        place=place,
        step=position.get("step"),
        epoch=position.get("epoch"),
        batch=position.get("batch"),
        size=sum(_sizes(place)),
        written=_written(place),
        flaw=flaw,
    )


def _checkpoints_at(path: Path) -> list[Path]:
    places = [path] if is_checkpoint(path) else checkpoints_of_run(path)
    if not places:
        raise ConfigError(no_checkpoint(path))
    return places


def _no_run(path: Path) -> str:
    if told := no_folder(path, "of a run, such as runs/NAME"):
        return told
    if is_checkpoint(path):
        return f"{path} is a checkpoint, not a run: give the run's folder, or use `checkpoint.py verify {path}`."
    return f"{path} holds no checkpoint, neither checkpoints/step_… nor best/: give the folder of a run that saved one."


def _read_position(place: Path) -> Mapping[str, int]:
    """Where in its run a whole checkpoint was taken. A file may be what was written, and yet not what it should be."""
    if target := dead_link(place):
        raise DataError(f"{place / MANIFEST} cannot be read: the checkpoint is a link to {target}, which is not there.")
    contents = read_files(place)
    for name in (WEIGHTS, MOMENTS, PROMPTS):
        _require_tensors(place / name)
    state = read_state(contents[STATE], place / STATE, _POSITION)
    return {name: state[name] for name in _POSITION}


def _require_tensors(path: Path) -> None:
    """The header alone is read: it says what tensors there are, and has to account for every byte."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is no safetensors file ({error}).") from error


def _sizes(folder: Path) -> Iterator[int]:
    for name in (MANIFEST, *FILES):
        with suppress(OSError):
            yield (folder / name).stat().st_size


def _written(folder: Path) -> datetime | None:
    for path in (folder / MANIFEST, folder):
        with suppress(OSError):
            return datetime.fromtimestamp(path.stat().st_mtime)
    return None


def _newest(found: Sequence[Inspection]) -> Inspection:
    """The last step; where there is none, the best."""
    steps = [inspection for inspection in found if is_numbered(inspection.folder)]
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
            *(DASH if number is None else str(number) for number in position),
            decimal(inspection.size),
            DASH if inspection.written is None else f"{inspection.written:%Y-%m-%d %H:%M}",
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
