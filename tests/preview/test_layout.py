import io

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from arcdist.preview.layout import ARROW, Panel, Strip, draw_strips


def strip(*sides, augmented=True):
    panels = [Panel(caption=f"{side}", grid=np.full((side, side), side % 10, np.uint8)) for side in sides]
    return Strip(name="pair", note="", before=panels, after=panels if augmented else [])


def printed(strips, width):
    console = Console(file=io.StringIO(), width=width)
    for drawn in draw_strips(strips, width, colored=False):
        console.print(drawn)
    return console.file.getvalue().splitlines()


def test_small_grids_stand_in_a_row():
    assert [line.rstrip() for line in printed([strip(1, 2)], 80)] == [
        "pair",
        "1   2         1   2",
        "1   2 2   →   1   2 2",
        "    2 2           2 2",
    ]


def test_cells_are_narrow_where_wide_ones_do_not_fit():
    # 2 · 9 + 2 · 3 between the grids, 2 · 3 + 1 at the arrow, and 4 · (2 · 10 − 1), which is 89, or 4 · 10.
    wide, narrow = printed([strip(10, 10)], 89), printed([strip(10, 10)], 88)
    assert wide[2].split(ARROW)[0].strip() == "   ".join([" ".join("0" * 10)] * 2)
    assert narrow[2].split(ARROW)[0].strip() == "   ".join(["0" * 10] * 2)


def test_one_pair_that_is_too_wide_makes_the_cells_of_all_narrow():
    lines = printed([strip(2, 2), strip(20, 20)], 100)
    assert lines[2].startswith("22   22   →")


def test_what_does_not_fit_beside_stands_below():
    lines = [line.rstrip() for line in printed([strip(30, 30)], 80)]
    assert len(lines) == 1 + 2 * 31
    assert lines[2] == f"    {'0' * 30}   {'0' * 30}"
    assert lines[33] == f"{ARROW}   {'0' * 30}   {'0' * 30}"


def test_or_all_in_a_column():
    assert len(printed([strip(30, 30)], 40)) == 1 + 4 * 31
    assert len(printed([strip(30, 30, augmented=False)], 40)) == 1 + 2 * 31


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize("sides", [(3, 9), (16, 16), (30, 1), (30, 30)])
def test_no_row_of_grids_is_wider_than_the_terminal(width, colored, sides):
    roomy = Console(file=io.StringIO(), width=400)
    for drawn in draw_strips([strip(*sides), strip(*sides, augmented=False)], width, colored=colored):
        roomy.print(drawn)
    assert max(cell_len(line.rstrip()) for line in roomy.file.getvalue().splitlines()) <= width
