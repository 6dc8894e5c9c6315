"""Grids as text for a terminal, as figures, and as pictures of palette colours."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.console import Console

from arcdist.analysis.page import picture
from arcdist.tracking.grids import (
    ARC_COLORS,
    difference_picture,
    draw_grids,
    grid_picture,
    grid_text,
    has_colors,
    on_one_canvas,
    png,
    query_figure,
    query_picture,
    right_cells,
    verdict,
    verdict_of,
)
from arcdist.tracking.metrics import ShownQuery

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
    assert grid_text(GRID, wide=True, colored=False).plain == "0 1 2\n3 4 5\n6 7 8"
    assert grid_text(GRID, wide=False, colored=False).plain == "012\n345\n678"


@given(grids)
def test_wide_coloured_cells_hold_their_digit(grid):
    lines = styles(grid_text(grid, wide=True, colored=True))
    digits = [[char for char, _ in line[::2]] for line in lines]
    assert digits == [[str(color) for color in row] for row in grid.tolist()]
    for line, row in zip(lines, grid.tolist(), strict=True):
        behind = [style.bgcolor.get_truecolor().hex.upper() for _, style in line]
        assert behind == [ARC_COLORS[color].upper() for color in row for _ in range(2)]
        assert all(style.color != style.bgcolor for _, style in line)


@given(grids)
def test_a_narrow_coloured_character_holds_two_cells(grid):
    top, *lines, bottom = styles(grid_text(grid, wide=False, colored=True))
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
def test_cells_have_one_width(grid, wide, colored):
    lines = grid_text(grid, wide=wide, colored=colored).plain.split("\n")
    cells = grid.shape[1]
    columns = {(True, True): 2 * cells, (True, False): 2 * cells - 1, (False, True): cells + 2, (False, False): cells}
    assert {cell_len(line) for line in lines} == {columns[wide, colored]}


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


TARGET = ((1, 2, 3), (4, 6, 7))
NEARLY = ((1, 2, 3), (4, 6, 8))


def query(prediction=NEARLY, steps=(((9, 9, 9), (9, 9, 9)), NEARLY), name="a:test:0"):
    return ShownQuery(id=name, input=((5,),), target=TARGET, steps=steps, prediction=prediction)


def image_of(figure):
    content = io.BytesIO()
    figure.savefig(content)
    content.seek(0)
    return imread(content)[..., :3]


def drawn(image, color):
    """Pixels of exactly this colour."""
    return int((np.abs(image - np.array(to_rgb(color))) < 0.01).all(-1).sum())


def titles(figure):
    (axes,) = figure.axes
    return [text.get_text() for text in axes.texts]


small_grids = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(0, 3, drawn[:2])
)


def test_a_row_shows_every_colour_of_arc():
    figure = Figure(figsize=(5, 2.7), dpi=100)
    grid = np.arange(10, dtype=np.uint8).reshape(2, 5)
    draw_grids(list(figure.subplots(1, 2)), (grid, grid[:1]), ("whole", "half"))
    left, right = np.array_split(image_of(figure), 2, axis=1)
    for number, color in enumerate(ARC_COLORS):
        assert drawn(left, color) > 500
        assert (drawn(right, color) > 500) == (number < 5)
    assert [axes.get_title() for axes in figure.axes] == ["whole", "half"]


@pytest.mark.parametrize(
    ("prediction", "said", "right"),
    [([[1, 2], [3, 4]], "solved", 4), ([[1, 0], [3, 0]], "2 of 4 cells wrong", 2), ([[1, 2]], "wrong size", 2)],
)
def test_verdict(prediction, said, right):
    prediction, target = np.array(prediction), np.array([[1, 2], [3, 4]])
    assert verdict(prediction, target) == said
    assert right_cells(prediction, target) == right


@settings(deadline=None)  # each example makes a figure
@given(small_grids, small_grids)
def test_what_is_not_right_is_wrong(prediction, target):
    predicted, wanted = on_one_canvas(prediction, target)
    wrong = predicted != wanted
    overlap = np.minimum(prediction.shape, target.shape).prod()
    right = right_cells(prediction, target)
    assert wrong.sum() == prediction.size + target.size - overlap - right
    assert (verdict(prediction, target) == "solved") == (not wrong.any())
    assert right_cells(target, prediction) == right

    asked = ShownQuery(id="a", input=((5,),), target=rows(target), steps=(), prediction=rows(prediction))
    difference = [mesh.get_array() for mesh in query_figure(asked).axes[0].collections if isinstance(mesh, QuadMesh)][
        -1
    ]
    shown = difference != 10
    np.testing.assert_array_equal(shown, wrong & (wanted >= 0))
    np.testing.assert_array_equal(difference[shown], wanted[shown])


def rows(grid):
    return tuple(map(tuple, grid.tolist()))


def test_a_row_shows_the_way_to_the_answer():
    assert titles(query_figure(query())) == [
        *("input", "1 × 1", "after step 1", "6 of 6 wrong", "after step 2", "1 of 6 wrong"),
        *("prediction", "1 of 6 wrong", "target", "2 × 3", "difference", "1 of 6 wrong"),
    ]
    assert verdict_of(query()) == "1 of 6 cells wrong"
    assert verdict_of(query(TARGET)) == "solved"


def test_of_many_planning_steps_five_are_shown():
    row = titles(query_figure(query(steps=(NEARLY,) * 8 + (TARGET,))))
    assert row[2:12:2] == [f"after step {step}" for step in (1, 3, 5, 7, 9)]
    assert titles(query_figure(query(steps=())))[2] == "prediction"


def test_a_wrong_cell_has_the_colour_of_the_target_and_a_cross():
    figure = query_figure(query())
    difference = image_of(figure)[:, 1000:]
    assert drawn(difference, ARC_COLORS[7]) > 200
    assert drawn(difference, ARC_COLORS[8]) == drawn(difference, ARC_COLORS[1]) == 0
    crosses = [line for lines in figure.axes[0].collections for line in lines.get_paths() if len(line.vertices) == 2]
    solved = [
        line
        for lines in query_figure(query(TARGET)).axes[0].collections
        for line in lines.get_paths()
        if len(line.vertices) == 2
    ]
    assert (len(crosses), len(solved)) == (2 * 2, 0)  # two strokes, black on white


def test_sizes_that_are_not_the_same_are_framed():
    framed = query_figure(query(((1, 2, 3, 4),))).axes[0].patches
    assert [(frame.get_linestyle() == "-", frame.get_width() / frame.get_height()) for frame in framed] == [
        (True, 3 / 2), (False, 4 / 1)
    ]  # fmt: skip
    assert list(query_figure(query()).axes[0].patches) == []


def test_16_queries_of_the_largest_grids_with_every_cell_wrong_are_two_megabytes_at_most():
    random = np.random.default_rng(0)

    def grid():
        return tuple(map(tuple, random.integers(0, 10, (30, 30)).tolist()))

    shown = ShownQuery(id="a", input=grid(), target=grid(), steps=(grid(), grid(), grid()), prediction=grid())
    assert len(picture(query_figure(shown), "")) < 2e6 / 16


@pytest.mark.parametrize("side", [1, 10, 30])
def test_pictures_fit_the_page_and_hold_whole_grids(side):
    grid = tuple((1,) * side for _ in range(side))
    shown = ShownQuery(id="a", input=grid, target=grid, steps=(grid,) * 5, prediction=grid)
    figure = query_figure(shown)
    image = image_of(figure)
    assert image.shape[1] == 1150
    assert image.shape[0] < 200
    # Nine panels, the last of them white.
    cell = min(26.0, ((1150 - 8 * 14) // 9 - 2) / side)
    assert drawn(image, ARC_COLORS[1]) == pytest.approx(8 * (side * cell) ** 2, rel=0.6)
    assert drawn(image[:, -1:], "#FFFFFF") > 0


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


def test_a_grid_by_itself_has_its_wrong_cells_crossed():
    def cells(picture):
        """The middles of its cells."""
        return np.array(picture.convert("RGB"))[4::8, 4::8]

    black, blue, white = (0, 0, 0), (0, 116, 217), (255, 255, 255)
    grid, target = np.array([[0, 1, 1]]), np.array([[0, 1], [1, 1]])
    assert cells(grid_picture(grid)).tolist() == [list(map(list, (black, blue, blue)))]
    # The third cell is none of the target's.
    assert cells(grid_picture(grid, target)).tolist() == [list(map(list, (black, blue, white)))]
    pale, wrong = (238, 238, 238), (213, 94, 0)
    difference = cells(difference_picture(grid, target)).tolist()
    assert difference == [list(map(list, row)) for row in ((pale, pale, wrong), (wrong, wrong, white))]
    assert grid_picture(grid).size == (25, 9)
