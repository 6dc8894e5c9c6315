"""What all views of a query say together: a product of experts (Hinton 2002, doi:10.1162/089976602760128018).

A view that errs in one cell still knows the others, so the product finds grids that no view has proposed, and tells
which of those that were proposed is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from arcdist.data import Augmentation, Grid

# V views of a query, H W working area of a view, h w grid, G longest side, C colours.


@dataclass(frozen=True, slots=True)
class Opinion:
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
        return (width, height) if self._lies_down else (height, width)

    def colors(self, height: int, width: int) -> Float[np.ndarray, "h w C"]:
        """Log-probabilities of the colours of a grid of that size, as the query is."""
        seen = self.log_colors[:width, :height] if self._lies_down else self.log_colors[:height, :width]
        turned = np.rot90(seen, -self.view.dihedral)
        return (turned.swapaxes(0, 1) if self.view.dihedral >= 4 else turned)[..., self.view.colors]

    @property
    def _lies_down(self) -> bool:
        """Whether the view exchanges height and width."""
        return (self.view.dihedral % 2 == 1) != (self.view.dihedral >= 4)


def likeliest_of_all(opinions: Sequence[Opinion]) -> tuple[Grid, float]:
    """The grid of the likeliest size and colours under the product of all views, and its log-probability there."""
    height, width = (int(sides.argmax()) + 1 for sides in _sides(opinions))
    grid = np.sum([each.colors(height, width) for each in opinions], axis=0).argmax(-1).astype(np.uint8)
    return grid, log_prob_of_all(opinions, grid)


def log_prob_of_all(opinions: Sequence[Opinion], grid: Grid) -> float:
    """Log-probability of a grid under the product of all views, unnormalised; -inf if it exceeds a working area."""
    height, width = grid.shape
    of_height, of_width = _sides(opinions)
    if max(height, width) > len(of_height) or not np.isfinite(of_size := of_height[height - 1] + of_width[width - 1]):
        return -np.inf
    index: Int[np.ndarray, "h w 1"] = grid[..., None].astype(np.int64)
    of_cells = sum(np.take_along_axis(each.colors(height, width), index, -1).sum() for each in opinions)
    return float(of_size + of_cells)


def _sides(opinions: Sequence[Opinion]) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    heights, widths = zip(*(each.sides() for each in opinions), strict=True)
    return np.sum(heights, axis=0), np.sum(widths, axis=0)
