"""The same as PNG pictures: the grids of a query, and the numbers of a data source."""

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.cells import cell_len
from rich.color import Color
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from arcdist.analysis.catalogue import Overview, TaskStatistics, histogram
from arcdist.analysis.seen import Given
from arcdist.config import AugmentConfig, Config, DataConfig
from arcdist.data import Augmentation, LeakReport, Pair
from arcdist.errors import ConfigError
from arcdist.files import replacing
from arcdist.formatting import counted
from arcdist.tracking.grids import ARC_COLORS, draw_grids
from arcdist.tracking.plots import BLUE, VERMILION

Grid = UInt8[np.ndarray, "h w"]

_UPPER_HALF = "▀"
_FAINT = "#777777"  # Frames, and the digit of the background colour: seen where they are looked for.


def has_colors(console: Console) -> bool:
    """Whether ARC's ten colours can be told apart there: sixteen colours, or none, do not do."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def drawn_width(grid: Grid, *, wide: bool, colored: bool) -> int:
    """Columns that `draw_cells` takes."""
    cells = grid.shape[1]
    if not colored:
        return 2 * cells - 1 if wide else cells
    return 2 * cells if wide else cells + 2


def draw_cells(grid: Grid, *, wide: bool, colored: bool) -> Text:
    """A grid as text, a line a row, or a line for two rows where cells are coloured and narrow."""
    if not colored:
        return Text("\n".join((" " if wide else "").join(map(str, row)) for row in grid.tolist()))
    return _wide(grid) if wide else _narrow(grid)


def _wide(grid: Grid) -> Text:
    lines = [Text.assemble(*((f"{color} ", _CELLS[color]) for color in row)) for row in grid.tolist()]
    return Text("\n").join(lines)


def _narrow(grid: Grid) -> Text:
    width = grid.shape[1]
    lines = [Text(f"┌{'─' * width}┐", style=_FAINT)]
    for top in range(0, len(grid), 2):
        styles = (_half(*column) for column in grid[top : top + 2].T.tolist())
        lines.append(
            Text.assemble(("│", _FAINT), *((_UPPER_HALF, style) for style in styles), ("│", _FAINT)),
        )
    return Text("\n").join([*lines, Text(f"└{'─' * width}┘", style=_FAINT)])


def _half(upper: int, lower: int | None = None) -> Style:
    return Style(color=ARC_COLORS[upper], bgcolor=None if lower is None else ARC_COLORS[lower])


def _ink(color: int) -> str:
    if color == 0:
        return _FAINT
    red, green, blue = Color.parse(ARC_COLORS[color]).get_truecolor()
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#FFFFFF"


_CELLS = tuple(Style(color=_ink(number), bgcolor=color) for number, color in enumerate(ARC_COLORS))


SYMMETRIES = (
    "as it is",
    "turned left by 90°",
    "turned by 180°",
    "turned right by 90°",
    "mirrored at the diagonal from the upper left",
    "mirrored top to bottom",
    "mirrored at the diagonal from the upper right",
    "mirrored left to right",
)
"""What `Augmentation.dihedral` 0 to 7 does to a grid."""


def describe(augmentation: Augmentation, names: tuple[str, ...], augment: AugmentConfig) -> dict[str, str]:
    """What was drawn, by part: the symmetry, the colours, the order of the context pairs.

    Args:
        augmentation: as drawn.
        names: of the context pairs, in the data's order.
        augment: what may be drawn at all.
    """
    moved = [f"{old}→{new}" for old, new in enumerate(augmentation.colors.tolist()) if old != new]
    order = " ".join(names[place] for place in augmentation.order)
    parts = {
        "symmetry": (augment.dihedral, f"{augmentation.dihedral} of 0-7: {SYMMETRIES[augmentation.dihedral]}"),
        "colours": (augment.colors, " ".join(moved) or "as they are"),
        "order": (augment.order, order),
    }
    keys = {"symmetry": "dihedral", "colours": "colors", "order": "order"}
    return {
        part: text if drawn else f"not drawn: data.augment.{keys[part]} is false"
        for part, (drawn, text) in parts.items()
    }


ARROW = "→"
KEPT = "yellow"
"""Style of what the models are not given."""
_GAP = 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Panel:
    """A grid and what it is."""

    caption: str
    grid: Grid


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Strip:
    """The grids of one pair: as in the data and, where it is augmented, as augmented."""

    name: str
    """Which pair, and its part in the query."""
    note: str
    """What the models are not given, or empty."""
    before: Sequence[Panel]
    after: Sequence[Panel]


_Rows: TypeAlias = list[list[Panel | str]]
"""Panels and marks between them, row by row."""


def draw_strips(strips: Sequence[Strip], width: int, *, colored: bool) -> list[RenderableType]:
    """Strips to print within `width` columns: with wide cells where all pairs then fit in a row each, else narrow ones.

    A pair that does not fit in a row has what is augmented below what is in the data, or all its grids in a column.
    """
    wide = all(_width(next(_arrangements(strip)), wide=True, colored=colored) <= width for strip in strips)
    return [_draw(strip, width, wide=wide, colored=colored) for strip in strips]


def _arrangements(strip: Strip) -> Iterator[_Rows]:
    """From the widest to the narrowest."""
    before, after = strip.before, strip.after
    if after:
        yield [[*before, ARROW, *after]]
        yield [[" ", *before], [ARROW, *after]]
        yield [[mark, panel] for mark, panels in ((" ", before), (ARROW, after)) for panel in panels]
    else:
        yield [[*before]]
        yield [[panel] for panel in before]


def _width(rows: _Rows, *, wide: bool, colored: bool) -> int:
    def columns(part: Panel | str) -> int:
        if isinstance(part, str):
            return cell_len(part)
        return max(cell_len(part.caption), drawn_width(part.grid, wide=wide, colored=colored))

    return max((sum(map(columns, row)) + _GAP * (len(row) - 1) for row in rows), default=0)


def _draw(strip: Strip, width: int, *, wide: bool, colored: bool) -> RenderableType:
    choices = list(_arrangements(strip))
    fitting = (rows for rows in choices if _width(rows, wide=wide, colored=colored) <= width)
    parts: list[RenderableType] = [
        Text.assemble((strip.name, "bold"), ("  " if strip.note else ""), (strip.note, KEPT))
    ]
    for row in next(fitting, choices[-1]):
        table = Table.grid(padding=(0, _GAP, 0, 0))
        for _ in row:
            table.add_column(no_wrap=True)
        table.add_row(*(_part(part, wide=wide, colored=colored) for part in row))
        parts.append(table)
    return Group(*parts)


def _part(part: Panel | str, *, wide: bool, colored: bool) -> Text:
    if isinstance(part, str):
        return Text(f"\n{part}")
    return Text.assemble((part.caption, "dim"), "\n", draw_cells(part.grid, wide=wide, colored=colored))


NOT_GIVEN = "not given to the models"


def strips_of(given: Given) -> list[Strip]:
    """Context pairs as ordered by the augmentation, the query; apart from them its target and all other pairs."""
    return [*_context(given), _query(given), _target(given), *_others(given)]


def _context(given: Given) -> Iterator[Strip]:
    order = range(len(given.context)) if given.augmentation is None else given.augmentation.order
    for number, (place, seen) in enumerate(zip(order, given.context, strict=True), start=1):
        yield Strip(
            name=f"context {number} of {len(given.context)}: {given.names[place]}",
            note="",
            before=_panels(given.query.context[place]),
            after=[] if given.augmentation is None else _panels(seen),
        )


def _query(given: Given) -> Strip:
    return Strip(
        name=f"query: {given.name}",
        note="",
        before=[_panel("input", given.query.input)],
        after=[] if given.augmentation is None else [_panel("input", given.input)],
    )


def _target(given: Given) -> Strip:
    before, after = given.query.target, given.target
    return Strip(
        name=f"target of {given.name}",
        note="not known" if before is None else NOT_GIVEN,
        before=[] if before is None else [_panel("target", before)],
        after=[] if after is None or given.augmentation is None else [_panel("target", after)],
    )


def _others(given: Given) -> Iterator[Strip]:
    for kind, pairs in (("train", given.task.demonstrations), ("test", given.task.tests)):
        for place, pair in enumerate(pairs):
            name = f"{kind}:{place}"
            if name != given.name and name not in given.names:
                yield Strip(name=name, note=NOT_GIVEN, before=_panels(pair), after=[])


def _panels(pair: Pair) -> list[Panel]:
    return [_panel(name, grid) for name, grid in zip(("input", "output"), pair.grids(), strict=False)]


def _panel(name: str, grid: Grid) -> Panel:
    return Panel(caption="{} {} × {}".format(name, *grid.shape), grid=grid)


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


def heading(given: Given, config: Config, *, epoch: int, origin: str, exclusion: str | None) -> list[Text]:
    """Which query it is, and how the data is changed for it, line by line.

    Args:
        given: the query.
        config: of the run.
        epoch: whose augmentation a train query has.
        origin: where the task was read from.
        exclusion: why a run would not ask this query; none where it would.
    """
    task, augmentation = given.task, given.augmentation
    seen = "as validation sees it" if augmentation is None else f"as training sees it in epoch {epoch}"
    pairs = f"{counted(len(task.demonstrations), 'demonstration')}, {counted(len(task.tests), 'test pair')}"
    lines = [Text.assemble((given.query.id, "bold"), f", {seen}"), Text(f"{origin}: {pairs}")]
    if exclusion is not None:
        lines.append(Text(exclusion, style=KEPT))
    if augmentation is None:
        return [*lines, Text("Nothing is augmented in validation; --epoch E shows what training draws.")]
    drawn = describe(augmentation, given.names, config.data.augment)
    return [*lines, *(Text(f"{part}: {text}") for part, text in drawn.items())]


def show_task(console: Console, given: Given, config: Config, lines: Sequence[Text]) -> None:
    """Print what the models are given of a query, and what is kept from them.

    Args:
        console: where to; grids are laid out for its width and its colours.
        given: the query.
        config: of the run.
        lines: of its heading.
    """
    for part in (*lines, *_grids(given, console), *_prompt(given), *_numbers(given, config)):
        console.print(part)
    console.print()


def _grids(given: Given, console: Console) -> Iterator[RenderableType]:
    if given.augmentation is not None:
        yield f"Before {ARROW} grids are as in the data, after it as augmented."
    for drawn in draw_strips(strips_of(given), console.width, colored=has_colors(console)):
        yield ""
        yield drawn


def _prompt(given: Given) -> Iterator[RenderableType]:
    yield ""
    yield Text.assemble(("prompt", "bold"), f": {len(given.ids):,} tokens of {given.tokenizer}")
    yield "Decoded from these, left to right, then below; the end of a line is a token."
    yield ""
    yield Columns([Text(block) for block in _blocks(given.text)], padding=(0, 3, 0, 0))


def _blocks(text: str) -> list[str]:
    """The text cut before each mark, so that grids can stand beside each other."""
    return [block for block in re.split(r"(?=[IO])", text) if block]


def _numbers(given: Given, config: Config) -> Iterator[RenderableType]:
    features = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    features.add_column("transformation feature", no_wrap=True)
    features.add_column("mean of pairs", justify="right", no_wrap=True)
    for name, value in given.features.items():
        features.add_row(name, f"{value:.4f}")
    yield features
    yield ""
    rest = Table.grid(padding=(0, 2, 0, 0))
    rest.add_row("working area", "{} × {}".format(*given.working_area))
    rest.add_row("task vector", _task_vector(given, config))
    counts = (
        Text(f"{name} {count:,}", style="bold" if name == given.name else "")
        for name, count in given.token_counts.items()
    )
    rest.add_row("tokens", Text(", ").join(counts))
    yield rest


def _task_vector(given: Given, config: Config) -> str:
    if not config.agent.task_vectors:
        return "none: agent.task_vectors is false"
    return "zeros: the task is not trained on" if given.task_row < 0 else f"row {given.task_row}"


_CELL_INCHES = 0.11
_LEAST_INCHES = 1.9
_LETTERS_PER_INCH = 12
_PAIR = (BLUE, VERMILION)


def draw_task(given: Given, path: Path, heading: Sequence[str]) -> None:
    """Draw a row for each pair: as in the data and, on the right, as augmented; the target in a row of its own.

    Args:
        given: the query.
        path: of the PNG.
        heading: lines above all.

    Raises:
        ConfigError: the file cannot be written.
    """
    strips = [strip for strip in strips_of(given) if strip.before]
    side = max(_LEAST_INCHES, _CELL_INCHES * given.task.longest_side)
    columns = 4 if given.augmentation is not None else 2
    width = columns * (side + 0.3)
    title = [part for line in heading for part in textwrap.wrap(line, int(width * _LETTERS_PER_INCH))]
    height = len(strips) * (side + 0.7) + 0.2 * len(title)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    figure.suptitle("\n".join(title), x=0.02, ha="left", fontsize="medium")
    places: list[Axes] = []
    panels: list[Panel] = []
    titles: list[str] = []
    for strip, row in zip(strips, figure.subplots(len(strips), columns, squeeze=False), strict=True):
        for axes in row:
            axes.set_axis_off()
        # What is augmented begins in the third column, also where a pair has one grid.
        for column, panel in (*enumerate(strip.before), *enumerate(strip.after, start=2)):
            places.append(row[column])
            panels.append(panel)
            titles.append(f"{_above(strip, column)}\n{panel.caption}")
    # In one call, so that cells have one size in all rows.
    draw_grids(places, [panel.grid for panel in panels], titles)
    _save(figure, path)


def _above(strip: Strip, column: int) -> str:
    return {0: "\n".join(filter(None, (strip.name, strip.note))), 2: "augmented"}.get(column, "")


def draw_data(overview: Overview, path: Path) -> None:
    """Draw the lengths of the queries, the sides of the grids and the colours of their cells.

    Raises:
        ConfigError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 4.2), dpi=100, layout="constrained")
    lengths, sides, colors = figure.subplots(1, 3)

    counted = histogram([overview.training.lengths, overview.validation.lengths], most_bins=40)
    edges = counted.width * np.arange(len(counted.counts[0]) + 1)
    lengths.set_title("Tokens of a query, share of the queries")
    for counts, role, color in zip(counted.counts, ("training", "validation"), _PAIR, strict=True):
        number = sum(counts)
        lengths.stairs(np.array(counts) / number, edges, label=f"{role}: {number:,} queries", color=color, linewidth=2)
    lengths.legend(fontsize="small")

    sides.set_title("Sides of the grids, share of all")
    colors.set_title("Colours, share of all cells")
    width = 0.8 / len(overview.sources)
    for place, (origin, found) in enumerate(overview.sources.items()):
        shift = (place - (len(overview.sources) - 1) / 2) * width
        by_side = np.bincount(found.sides) / len(found.sides)
        sides.bar(np.arange(len(by_side)) + shift, by_side, width, label=origin, color=_PAIR[place])
        # Both have ARC's colours.
        hatch = "////" if place else ""
        colors.bar(np.arange(10) + shift, found.color_shares, width, color=ARC_COLORS, edgecolor="#555555", hatch=hatch)
    if len(overview.sources) > 1:
        sides.legend(fontsize="small")
        colors.set_xlabel("hatched: validation")
    colors.set_xticks(range(10))
    for axes in (lengths, sides, colors):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (lengths, sides):
        axes.margins(y=0.2)  # room for the legend
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
    except OSError as error:
        raise ConfigError(f"--picture {path} cannot be written ({error.strerror}): choose another file.") from error
