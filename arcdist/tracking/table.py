"""The table that a run ends with: its scores beside the floor, and where its files lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from arcdist.tracking.wording import percent

_SCORES = (
    ("exact grids", "val/exact", "floor/copy_exact"),
    ("cells", "val/cell", "floor/copy_cell"),
    ("grid sizes", "val/size", None),
    ("exact grids in training", "train/exact", None),
)
_GAIN = ("cells gained by refinement", "val/accuracy_delta")


def epoch_table(epoch: Mapping[str, Any], best: Mapping[str, Any], outputs: Mapping[str, Path]) -> RenderableType:
    """Scores of an epoch, of the best one and of copying the input, in percent; below, each output and its path.

    `epoch` and `best` are records of `metrics.json`; what they lack is shown as a dash.
    """
    scores = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    scores.add_column("validation")
    scores.add_column(f"epoch {epoch['epoch']}", justify="right")
    scores.add_column(f"best: epoch {best['epoch']}" if best else "best", justify="right", style="bold")
    scores.add_column("copying the input", justify="right")
    for name, key, floor in _SCORES:
        scores.add_row(name, *(percent(value) for value in (epoch.get(key), best.get(key), epoch.get(floor or ""))))
    name, key = _GAIN
    scores.add_row(name, *(percent(value, sign="+") for value in (epoch.get(key), best.get(key), None)))

    places = Table.grid(padding=(0, 2))
    places.add_column()
    places.add_column(overflow="fold")
    for name, path in outputs.items():
        places.add_row(name, str(path))
    return Group(scores, places)
