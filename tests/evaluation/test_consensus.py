"""What all views say together: taken back exactly, a product over them, and no grid is likelier."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.data import Augmentation
from arcdist.evaluation.consensus import Consensus, ViewPrediction
from arcdist.evaluation.predict import views

LONGEST = 5


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def predictions(count, area, seed, scale=1.0):
    """Of random views on a working area (height, width of the query as it is)."""
    rng = np.random.default_rng(seed)
    made = []
    for view in views(count, "a", seed):
        shape = view.apply(np.zeros(area, np.uint8)).shape
        colors, sides = rng.normal(size=(*shape, 10)), rng.normal(size=(2, LONGEST))
        made.append(ViewPrediction(view, log_softmax(scale * colors), log_softmax(scale * sides)))
    return made


@given(st.integers(1, LONGEST), st.integers(1, LONGEST), st.integers(0, 20))
def test_views_that_are_sure_of_the_grid_that_they_see_agree_on_the_grid_as_it_is(height, width, seed):
    grid = np.random.default_rng(seed).integers(0, 10, (height, width), dtype=np.uint8)
    sure = []
    for view in views(17, "a", seed):
        seen = view.apply(grid)
        # The working area is larger than the answer, and what lies outside is about something else.
        colors = np.full((LONGEST, LONGEST, 10), -9.0)
        colors[: seen.shape[0], : seen.shape[1]] = np.where(np.eye(10)[seen] > 0, -0.1, -9.0)
        sides = np.where(np.eye(LONGEST)[[seen.shape[0] - 1, seen.shape[1] - 1]] > 0, -0.5, -9.0)
        sure.append(ViewPrediction(view, colors, sides))
    consensus = Consensus(sure)
    agreed = consensus.likeliest()
    assert agreed.tolist() == grid.tolist()
    assert agreed.dtype == np.uint8
    assert consensus.log_prob(agreed) == pytest.approx(17 * (2 * -0.5 + grid.size * -0.1))


def test_the_log_probability_by_a_slow_loop():
    area, made = (3, 4), predictions(11, (3, 4), 0)
    grid = np.array([[1, 2, 3], [0, 9, 5]], dtype=np.uint8)
    total = 0.0
    for each in made:
        seen = each.view.apply(grid)
        total += each.log_sides[0, seen.shape[0] - 1] + each.log_sides[1, seen.shape[1] - 1]
        total += sum(each.log_colors[row, column, color] for (row, column), color in np.ndenumerate(seen))
    consensus = Consensus(made)
    assert consensus.log_prob(grid) == pytest.approx(total)
    for size in ((area[0] + 1, 1), (1, area[1] + 1), (1, LONGEST + 1)):
        assert consensus.log_prob(np.zeros(size, np.uint8)) == -np.inf


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(0, 50), st.randoms())
def test_no_grid_of_that_size_is_likelier(height, width, count, seed, random):
    consensus = Consensus(predictions(count, (height, width), seed))
    agreed = consensus.likeliest()
    assert agreed.shape[0] <= height
    assert agreed.shape[1] <= width
    other = agreed.copy()
    other[random.randrange(agreed.shape[0]), random.randrange(agreed.shape[1])] = random.randrange(10)
    assert consensus.log_prob(other) <= consensus.log_prob(agreed) + 1e-9


def test_what_each_view_gets_wrong_elsewhere_is_right_together():
    grid = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    colors = np.arange(10, dtype=np.uint8)
    sides = np.where(np.eye(LONGEST)[[1, 1]] > 0, -0.1, -5.0)
    erring = []
    for cell in range(4):
        says = np.where(np.eye(10)[grid] > 0, np.log(0.9), np.log(0.1 / 9))
        says[cell // 2, cell % 2] = np.where(np.arange(10) == 7, np.log(0.6), np.log(0.4 / 9))
        erring.append(ViewPrediction(Augmentation(dihedral=0, colors=colors, order=()), says, sides))
    assert not any((each.log_colors.argmax(-1) == grid).all() for each in erring)
    assert Consensus(erring).likeliest().tolist() == grid.tolist()
