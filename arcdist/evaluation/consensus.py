"""What all views of a query say together: a product of experts (Hinton 2002, doi:10.1162/089976602760128018).

A view that errs in one cell still knows the others, so the product finds grids that no view has proposed, and ranks
those that were proposed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

from arcdist.data import Augmentation, Grid

# H W working area of a view, h w grid, G longest side, C colours.


@dataclass(frozen=True, slots=True)
class ViewPrediction:
    """What the agent says of a query in one view."""

    view: Augmentation
    log_colors: Float[np.ndarray, "H W C"]
    """Log-probabilities of each cell's colours, as the query is seen."""
    log_sides: Float[np.ndarray, "2 G"]
    """Log-probabilities of height and width, as it is seen."""

    def sides(self) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
        """Log-probabilities of height and width as the query is; -inf where the working area ends."""
        inside = np.arange(1, self.log_sides.shape[1] + 1) <= np.array(self.log_colors.shape[:2])[:, None]
        height, width = np.where(inside, self.log_sides, -np.inf)
        return (width, height) if self._swaps_sides else (height, width)

    def colors(self, height: int, width: int) -> Float[np.ndarray, "h w C"]:
        """Log-probabilities of the colours of a grid of that size, as the query is."""
        seen = self.log_colors[:width, :height] if self._swaps_sides else self.log_colors[:height, :width]
        turned = np.rot90(seen, -self.view.dihedral)
        # Of colour c the view says what it says of the colour that c becomes in it.
        return (turned.swapaxes(0, 1) if self.view.dihedral >= 4 else turned)[..., self.view.colors]

    @property
    def _swaps_sides(self) -> bool:
        return (self.view.dihedral % 2 == 1) != (self.view.dihedral >= 4)


class Consensus:
    """The product of all views, not normalised again."""

    def __init__(self, views: Sequence[ViewPrediction]) -> None:
        heights, widths = zip(*(view.sides() for view in views), strict=True)
        self._heights, self._widths = np.sum(heights, axis=0), np.sum(widths, axis=0)
        self._colors = cache(lambda height, width: np.sum([view.colors(height, width) for view in views], axis=0))

    def likeliest(self) -> Grid:
        """The grid of the likeliest size, and of its likeliest colours."""
        height, width = int(self._heights.argmax()) + 1, int(self._widths.argmax()) + 1
        grid: Grid = self._colors(height, width).argmax(-1).astype(np.uint8)
        return grid

    def log_prob(self, grid: Grid) -> float:
        """Sum of the views' log-probabilities of a grid; -inf if it exceeds a working area."""
        height, width = grid.shape
        if max(height, width) > len(self._heights):
            return -np.inf
        of_size = self._heights[height - 1] + self._widths[width - 1]
        if of_size == -np.inf:
            return -np.inf
        of_cells = np.take_along_axis(self._colors(height, width), grid[..., None].astype(np.int64), -1)
        return float(of_size + of_cells.sum())
