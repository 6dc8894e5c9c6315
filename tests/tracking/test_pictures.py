"""Queries as pictures of palette colours: every cell in its colour, and what is wrong is marked."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from arcdist.tracking.grids import ARC_COLORS
from arcdist.tracking.metrics import ShownQuery
from arcdist.tracking.pictures import png, query_picture

SIDE, BETWEEN = 8, 12
RIGHT, WRONG, PAPER = "#EEEEEE", "#D55E00", "#FFFFFF"


def colors_of(picture, shapes):
    """The colour in the middle of each cell of grids with these shapes, as `#RRGGBB`."""
    pixels = np.asarray(picture.convert("RGB"))
    grids, left = [], 0
    for rows, columns in shapes:
        cells = pixels[SIDE // 2 : rows * SIDE : SIDE, left + SIDE // 2 : left + columns * SIDE : SIDE]
        grids.append([["#{:02X}{:02X}{:02X}".format(*map(int, cell)) for cell in row] for row in cells])
        left += columns * SIDE + 1 + BETWEEN
    assert (picture.width, picture.height) == (left - BETWEEN, max(rows for rows, _ in shapes) * SIDE + 1)
    return grids


def colored(grid):
    return [[ARC_COLORS[color] for color in row] for row in grid]


def difference(prediction, target):
    query = ShownQuery(id="a", input=((0,),), target=target, steps=(), prediction=prediction)
    grids = (query.input, prediction, target)
    both = (max(len(prediction), len(target)), max(len(prediction[0]), len(target[0])))
    return colors_of(query_picture(query), [*((len(grid), len(grid[0])) for grid in grids), both])[-1]


GRIDS = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 9)] * width), min_size=1, max_size=6).map(tuple)
)


@given(GRIDS, GRIDS)
def test_each_cell_has_its_colour_also_in_the_file(grid, step):
    query = ShownQuery(id="a", input=grid, target=grid, steps=(step,), prediction=grid)
    shapes = [(len(one), len(one[0])) for one in (grid, step, grid, grid, grid)]
    right = [[RIGHT] * len(grid[0])] * len(grid)
    expected = [colored(grid), colored(step), colored(grid), colored(grid), right]
    picture = query_picture(query)
    assert colors_of(picture, shapes) == expected
    assert colors_of(Image.open(io.BytesIO(png(picture))), shapes) == expected


def test_what_is_wrong_is_marked_and_what_neither_grid_has_is_paper():
    assert difference(((1, 2), (3, 4)), ((1, 2), (3, 5))) == [[RIGHT, RIGHT], [RIGHT, WRONG]]
    # A row more in the one, a column more in the other.
    assert difference(((1,), (3,)), ((1, 2),)) == [[RIGHT, WRONG], [WRONG, PAPER]]
