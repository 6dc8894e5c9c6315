"""Grids of different sizes on one canvas."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8, UInt8

from arcdist.data.batch import OUTSIDE
from arcdist.data.tasks import MAX_SIDE, Pair

# N grids, H W canvas.


def working_area(
    context: Sequence[Pair], query: UInt8[np.ndarray, "h w"], max_grid_size: int = MAX_SIDE
) -> tuple[int, int]:
    """Bound the height and width of an answer without looking at it.

    A side is the largest of the query's, the context's, and the query's scaled like the context's outputs to their
    inputs (the largest ratio, rounded up), at most `max_grid_size`. `context` are pairs with outputs.
    """
    height, width = (_working_side(context, query.shape[axis], axis) for axis in (0, 1))
    return min(height, max_grid_size), min(width, max_grid_size)


def _working_side(context: Sequence[Pair], query_side: int, axis: int) -> int:
    longest = query_side
    for pair in context:
        assert pair.output is not None
        before, after = pair.input.shape[axis], pair.output.shape[axis]
        longest = max(longest, before, after, -(-query_side * after // before))
    return longest


def stack_grids(grids: Sequence[UInt8[np.ndarray, "_ _"]], height: int, width: int) -> Int8[np.ndarray, "N H W"]:
    """Lay grids on canvases of one size, top left; `OUTSIDE` beyond each."""
    stack = np.full((len(grids), height, width), OUTSIDE, dtype=np.int8)
    for canvas, grid in zip(stack, grids, strict=True):
        canvas[: grid.shape[0], : grid.shape[1]] = grid
    return stack
