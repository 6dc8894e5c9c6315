"""A data source on a terminal: counts, sizes, colours, a histogram of token lengths."""

from collections.abc import Callable, Iterator

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from arcdist.config import DataConfig
from arcdist.data import LeakReport
from arcdist.preview.cells import has_colors
from arcdist.preview.overview import Overview
from arcdist.preview.statistics import TaskStatistics, histogram
from arcdist.tracking.grids import ARC_COLORS

_BAR = "█"
_LONGEST_BAR = 18


def show_data(console: Console, overview: Overview, data: DataConfig) -> None:
    """Print what a configuration's data comes to; a refusal of the leak guard is the caller's to raise."""
    for part in (
        _tasks(overview, data),
        _queries(overview),
        _lengths(overview),
        _colors(overview, colored=has_colors(console)),
        *_leaks(overview),
    ):
        console.print(part)
        console.print()


def _tasks(overview: Overview, data: DataConfig) -> RenderableType:
    rows: dict[str, Callable[[TaskStatistics], str]] = {
        "tasks": lambda found: f"{found.tasks:,}",
        f"left out by data.max_side {data.max_side}": lambda found: f"{found.too_large:,}",
        f"left out by data.max_tasks {data.max_tasks}": lambda found: f"{found.too_many:,}",
        "demonstration pairs": lambda found: f"{found.demonstrations:,}",
        "tasks with one of them only": lambda found: f"{found.single:,}",
        "test pairs": lambda found: f"{found.tests:,}",
        "without a known output": lambda found: f"{found.unknown:,}",
        "outputs as large as inputs": lambda found: f"{found.same_size:,} tasks, {found.same_size / found.tasks:.1%}",
        "sides": lambda found: _spread(found.sides),
        "cells of a grid": lambda found: _spread(found.cells),
    }
    if data.max_tasks is None:
        del rows[f"left out by data.max_tasks {data.max_tasks}"]
    table = _table("tasks")
    for origin in overview.sources:
        table.add_column(origin, justify="right", overflow="fold")
    for name, value in rows.items():
        table.add_row(name, *map(value, overview.sources.values()))
    return table


def _queries(overview: Overview) -> RenderableType:
    table = _table("queries")
    table.add_column("training", justify="right")
    table.add_column("validation", justify="right")
    kinds = (overview.training, overview.validation)
    table.add_row("number", *(f"{len(kind.ids):,}" for kind in kinds))
    table.add_row("with a known output", f"{len(overview.training.ids):,}", f"{overview.scored:,}")
    table.add_row("tokens", *(f"{kind.lengths.sum():,}" for kind in kinds))
    table.add_row("tokens of one", *(_spread(kind.lengths) for kind in kinds))
    table.add_row("the longest", *(kind.longest[0] for kind in kinds))
    return table


def _lengths(overview: Overview) -> RenderableType:
    counted = histogram([overview.training.lengths, overview.validation.lengths])
    table = _table("tokens of a query")
    table.add_column("training")
    table.add_column("validation")
    most = [max(counts) for counts in counted.counts]
    for place, counts in enumerate(zip(*counted.counts, strict=True)):
        start = place * counted.width
        bars = (_bar(count, largest) for count, largest in zip(counts, most, strict=True))
        table.add_row(f"{start:,} to {start + counted.width - 1:,}", *bars)
    return table


def _bar(count: int, largest: int) -> str:
    # A single query is still seen.
    return f"{count:>6,} {_BAR * max(count > 0, round(_LONGEST_BAR * count / largest))}"


def _colors(overview: Overview, *, colored: bool) -> RenderableType:
    table = _table("colour: of cells, of tasks")
    for origin in overview.sources:
        table.add_column(origin, justify="right", overflow="fold")
    for number, color in enumerate(ARC_COLORS):
        name = Text(f"{number} ").append("  ", Style(bgcolor=color) if colored else "")
        values = (
            f"{found.color_shares[number]:.1%}, {found.color_tasks[number] / found.tasks:.1%}"
            for found in overview.sources.values()
        )
        table.add_row(name, *values)
    return table


def _leaks(overview: Overview) -> Iterator[RenderableType]:
    if not overview.scored:
        yield Text("No test pair has a known output: a run would be refused.", style="bold red")
    found = overview.leaks
    if not isinstance(found, LeakReport):
        yield Text("Leak guard: a run would be refused.", style="bold red")
        return
    if len(overview.sources) == 1:
        yield "Leak guard: not needed, as the test pairs of the tasks that are trained on are scored."
    elif found.shared_ids or found.shared_contents:
        yield (
            f"Leak guard: {found.shared_ids:,} scored tasks are trained on by id, {found.shared_contents:,} by "
            f"content ({', '.join(found.examples)}, …), which data.allow_overlap accepts."
        )
    else:
        yield "Leak guard: no scored task is trained on."
    if found.repeated_test_pairs:
        yield f"{found.repeated_test_pairs:,} test pairs are demonstrations of their own task as well."


def _spread(values: np.ndarray) -> str:
    low, median, high = (int(value) for value in np.quantile(values, (0, 0.5, 1), method="lower"))
    return f"{low:,} to {high:,}, median {median:,}"


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    return table
