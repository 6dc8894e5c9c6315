"""How the grids of a task stand beside and below each other, so that no line is wider than the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from arcdist.preview.cells import Grid, draw_cells, drawn_width

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
