import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from arcdist.analysis.page import picture
from arcdist.tracking import ARC_COLORS, Example, plot_examples, queries_figure, query_figure
from arcdist.tracking.grids import _difference, _wrong_cells, right_cells, verdict, verdict_of
from arcdist.tracking.metrics import ShownQuery

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


grids = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(0, 3, drawn[:2])
)


def test_examples_show_every_colour_of_arc(tmp_path):
    query = np.arange(10, dtype=np.uint8).reshape(2, 5)
    plot_examples([Example(name="a:test:0", query=query, prediction=query[:1], target=query)], tmp_path / "grids.png")
    image = imread(tmp_path / "grids.png")[..., :3]
    left, middle, _ = np.array_split(image, 3, axis=1)
    for number, color in enumerate(ARC_COLORS):
        assert drawn(left, color) > 500
        assert (drawn(middle, color) > 500) == (number < 5)


@pytest.mark.parametrize(
    ("prediction", "said", "right"),
    [([[1, 2], [3, 4]], "solved", 4), ([[1, 0], [3, 0]], "2 of 4 cells wrong", 2), ([[1, 2]], "wrong size", 2)],
)
def test_verdict(prediction, said, right):
    prediction, target = np.array(prediction), np.array([[1, 2], [3, 4]])
    assert Example(name="a", query=target, prediction=prediction, target=target).verdict == said
    assert verdict(prediction, target) == said
    assert right_cells(prediction, target) == right


@given(grids, grids)
def test_what_is_not_right_is_wrong(prediction, target):
    wrong = _wrong_cells(prediction, target)
    overlap = np.minimum(prediction.shape, target.shape).prod()
    right = right_cells(prediction, target)
    assert wrong.sum() == prediction.size + target.size - overlap - right
    assert (verdict(prediction, target) == "solved") == (not wrong.any())
    assert right_cells(target, prediction) == right
    difference = _difference(prediction, target)
    height, width = target.shape
    shown = difference[:height, :width] != 10
    assert (shown == wrong[:height, :width]).all()
    assert (difference[:height, :width][shown] == target[shown]).all()


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


def test_rows_have_their_ids_whatever_these_are():
    figure = queries_figure([query(name="$x_{"), query(TARGET, name="b:test:1")])
    assert [text for text in titles(figure) if text in ("$x_{", "b:test:1")] == ["$x_{", "b:test:1"]
    one, two = (image_of(queries_figure([query()] * count)).shape[0] for count in (1, 2))
    assert two - one == pytest.approx(one + 12, abs=2)
    assert image_of(figure).shape[1] == 1150
