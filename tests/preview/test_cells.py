"""Grids on a terminal: every cell's colour or digit, and never a column more than was said."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.console import Console

from arcdist.preview.cells import draw_cells, drawn_width, has_colors
from arcdist.tracking import ARC_COLORS

GRID = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]], np.uint8)
grids = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9))
)


def styles(text):
    """Character and style of each printed cell, line by line."""
    console = Console(color_system="truecolor", force_terminal=True, no_color=False, file=io.StringIO(), width=200)
    lines = console.render_lines(text, pad=False)
    return [[(char, segment.style) for segment in line for char in segment.text] for line in lines]


def test_without_colours_cells_are_digits():
    assert draw_cells(GRID, wide=True, colored=False).plain == "0 1 2\n3 4 5\n6 7 8"
    assert draw_cells(GRID, wide=False, colored=False).plain == "012\n345\n678"


@given(grids)
def test_wide_coloured_cells_hold_their_digit(grid):
    lines = styles(draw_cells(grid, wide=True, colored=True))
    digits = [[char for char, _ in line[::2]] for line in lines]
    assert digits == [[str(color) for color in row] for row in grid.tolist()]
    for line, row in zip(lines, grid.tolist(), strict=True):
        behind = [style.bgcolor.get_truecolor().hex.upper() for _, style in line]
        assert behind == [ARC_COLORS[color].upper() for color in row for _ in range(2)]
        assert all(style.color != style.bgcolor for _, style in line)


@given(grids)
def test_a_narrow_coloured_character_holds_two_cells(grid):
    top, *lines, bottom = styles(draw_cells(grid, wide=False, colored=True))
    assert "".join(char for char, _ in top) == f"┌{'─' * grid.shape[1]}┐"
    assert "".join(char for char, _ in bottom) == f"└{'─' * grid.shape[1]}┘"
    rows = []
    for line in lines:
        assert (line[0][0], line[-1][0]) == ("│", "│")
        assert {char for char, _ in line[1:-1]} == {"▀"}
        rows.append([style.color for _, style in line[1:-1]])
        rows.append([style.bgcolor for _, style in line[1:-1]])
    if len(grid) % 2:
        assert set(rows.pop()) == {None}
    shown = [[color.get_truecolor().hex.upper() for color in row] for row in rows]
    assert shown == [[ARC_COLORS[color].upper() for color in row] for row in grid.tolist()]


@given(grids, st.booleans(), st.booleans())
def test_the_width_is_as_said(grid, wide, colored):
    lines = draw_cells(grid, wide=wide, colored=colored).plain.split("\n")
    assert {cell_len(line) for line in lines} == {drawn_width(grid, wide=wide, colored=colored)}


def test_ten_colours_stay_apart_in_a_terminal_of_256():
    numbers = [Color.parse(color).downgrade(ColorSystem.EIGHT_BIT).number for color in ARC_COLORS]
    assert len(set(numbers)) == 10


@pytest.mark.parametrize(
    ("system", "no_color", "colored"),
    [
        *(("truecolor", False, True), ("256", False, True)),
        *(("standard", False, False), (None, False, False), ("truecolor", True, False)),
    ],
)
def test_colours_are_used_where_they_can_be_told_apart(system, no_color, colored):
    assert has_colors(Console(color_system=system, no_color=no_color, force_terminal=True)) is colored


@pytest.mark.parametrize(
    ("environment", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"TERM": "xterm"}, False)],
)
def test_the_environment_decides(environment, colored):
    settings = {"TERM": "xterm-256color", **environment}
    assert has_colors(Console(force_terminal=True, _environ=settings)) is colored
    assert not has_colors(Console(file=io.StringIO(), _environ=settings))
