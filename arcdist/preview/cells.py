"""Grids on a terminal: in ARC's colours, or as digits where there are none.

A cell is two columns wide, which makes it about square, or one. Of narrow coloured cells a character holds two, one
above the other, and a frame tells where black ones end. Digits need no colours; they stand in wide coloured cells too.
"""

import numpy as np
from jaxtyping import UInt8
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from arcdist.tracking.grids import ARC_COLORS

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
