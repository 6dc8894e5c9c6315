"""What the processes solved in a step enters the memory of each, in the order of the batch."""

# B queries of a pass, n solved by this process, N by all of them, H W canvas, G largest side, P prompt.
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from arcdist.distributed.exchange import gather_rows
from arcdist.evaluation import fit_canvas
from arcdist.models import PermanentSolver


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """The queries of a pass, and which of them are worth remembering."""

    admitted: Bool[Tensor, " B"]
    positions: tuple[int, ...]
    """Place of each in the batch."""
    features: Float[Tensor, "B P"]
    queries: Int[Tensor, "B H W"]
    outcomes: Int[Tensor, "B H W"]
    exact: Bool[Tensor, " B"]

    def packed(self, side: int) -> UInt8[Tensor, "n bytes"]:
        """What is admitted, a row of bytes each, its grids on a canvas of that side."""
        rows = self.admitted.nonzero().flatten()
        places = torch.tensor(self.positions, device=rows.device)[rows]
        grids = [fit_canvas(grid[rows], side, side).flatten(1).to(torch.int8) for grid in (self.queries, self.outcomes)]
        fields = (places[:, None], self.features[rows].float(), *grids, self.exact[rows, None])
        return torch.cat([field.contiguous().view(torch.uint8) for field in fields], dim=1)


def remember(
    solver: PermanentSolver, ids: Sequence[str], solved: Sequence[Solved], counts: Sequence[int], step: int
) -> None:
    """Put what all processes admitted into the memory of this one.

    Args:
        solver: owns the memory.
        ids: names of the batch's queries.
        solved: of each pass of this process.
        counts: queries that each process admitted.
        step: of the run.
    """
    if not any(counts):
        return
    side = solver.memory.max_grid_size
    rows = gather_rows(torch.cat([each.packed(side) for each in solved]), counts)
    width = 4 * solved[0].features.shape[1]
    place, features, queries, outcomes, exact = rows.split([8, width, side * side, side * side, 1], dim=1)
    places = place.flatten().view(torch.int64)
    order = places.argsort()
    solver.remember(
        ids=[ids[index] for index in places[order].tolist()],
        features=features.flatten().view(torch.float32).unflatten(0, (len(order), -1))[order],
        queries=_grids(queries, side)[order],
        outcomes=_grids(outcomes, side)[order],
        exact=exact.flatten().bool()[order],
        step=step,
    )


def _grids(values: UInt8[Tensor, "N cells"], side: int) -> Int[Tensor, "N G G"]:
    return values.view(torch.int8).unflatten(1, (side, side)).long()
