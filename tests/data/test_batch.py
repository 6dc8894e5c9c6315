import numpy as np
import pytest

from arcdist.data.batch import OUTSIDE, stack_grids, working_area
from arcdist.data.tasks import Pair


def grid(height, width):
    return np.zeros((height, width), dtype=np.uint8)


@pytest.mark.parametrize(
    ("context", "query", "area"),
    [
        ([((3, 3), (3, 3))], (5, 2), (5, 3)),  # the query is higher, the context wider
        ([((3, 3), (9, 9))], (4, 2), (12, 9)),  # 4 x 3; 2 x 3 is less than the context's 9
        ([((3, 4), (2, 5))], (4, 9), (4, 12)),  # 9 x 5 / 4 = 11.25, rounded up
        ([((2, 2), (2, 2)), ((2, 2), (4, 2))], (5, 5), (10, 5)),  # the largest ratio counts
        ([((3, 3), (9, 9))], (11, 30), (30, 30)),
    ],
)
def test_working_area_by_hand(context, query, area):
    pairs = [Pair(grid(*before), grid(*after)) for before, after in context]
    assert working_area(pairs, grid(*query)) == area


def test_working_area_is_capped():
    assert working_area([Pair(grid(3, 3), grid(9, 9))], grid(8, 8), max_grid_size=10) == (10, 10)


def test_grids_are_laid_top_left():
    stack = stack_grids([grid(1, 2) + np.uint8(3), grid(2, 1)], 2, 3)
    x = OUTSIDE
    assert stack.tolist() == [[[3, 3, x], [x, x, x]], [[0, x, x], [0, x, x]]]
