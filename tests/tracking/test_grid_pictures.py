import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from arcdist.tracking.grid_pictures import difference_of, picture_of, png_of, strip_of
from arcdist.tracking.grids import ARC_COLORS
from arcdist.tracking.validation import ShownQuery

GRIDS = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 9)] * width), min_size=1, max_size=6).map(tuple)
)


def colors_of(picture):
    """The colour in the middle of each cell, as `#RRGGBB`."""
    pixels = np.asarray(picture.convert("RGB"))[4::8, 4::8]
    return [["#{:02X}{:02X}{:02X}".format(*map(int, pixel)) for pixel in row] for row in pixels]


@given(GRIDS)
def test_each_cell_has_its_colour_also_in_the_file(grid):
    expected = [[ARC_COLORS[color] for color in row] for row in grid]
    picture = picture_of(grid)
    assert (picture.width, picture.height) == (8 * len(grid[0]) + 1, 8 * len(grid) + 1)
    assert colors_of(picture) == expected
    assert colors_of(Image.open(io.BytesIO(png_of(picture)))) == expected


def test_what_is_wrong_stands_out_and_what_neither_grid_has_is_paper():
    right, wrong, paper = "#EEEEEE", "#D55E00", "#FFFFFF"
    assert colors_of(difference_of(((1, 2), (3, 4)), ((1, 2), (3, 5)))) == [[right, right], [right, wrong]]
    # A row more in the one, a column more in the other.
    assert colors_of(difference_of(((1,), (3,)), ((1, 2),))) == [[right, wrong], [wrong, paper]]


def test_a_strip_shows_all_of_a_query():
    query = ShownQuery(id="a", input=((0, 1),), target=((2,),), steps=(((3,),), ((4,),)), prediction=((2,), (2,)))
    strip = strip_of(query)
    widths = [17, 9, 9, 9, 9, 9]
    assert (strip.width, strip.height) == (sum(widths) + 5 * 12, 17)
    starts = [sum(widths[:place]) + 12 * place for place in range(len(widths))]
    pixels = np.asarray(strip.convert("RGB"))
    first = [ARC_COLORS.index("#{:02X}{:02X}{:02X}".format(*map(int, pixels[4, start + 4]))) for start in starts[:-1]]
    assert first == [0, 3, 4, 2, 2]
