"""What the models are given for a batch of queries, and what they are scored against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8, UInt8
from torch import Tensor
from torch.nn import functional as F

from arcdist.data.tasks import MAX_SIDE, Pair

# N queries, B views of them (each query's one after the other), K context pairs (padded), H W canvas (the largest
# working area of the batch), h w canvas of the targets, p q of what Qwen writes, L tokens, F features, S numbers of the
# grid summary, G grids.

OUTSIDE = -1
"""Colour of a canvas cell that belongs to no grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryInputs:
    """All that the models may see of B views of N queries. No field depends on a query's target.

    Qwen and the refiner deal with a query, the agent and the solver with its views. Where Qwen reads each view itself,
    a query has one, B = N.
    """

    query: Int[Tensor, "B H W"]
    """The query's input grid as it is seen, top left on the canvas; `OUTSIDE` beyond it."""
    query_size: Int[Tensor, "B 2"]
    """Height and width of the query's input."""
    working_area: Int[Tensor, "B 2"]
    """Height and width in which the query's cells are computed: see `arcdist.data.working_area`."""
    context_inputs: Int[Tensor, "B K H W"]
    """Inputs of the task's other pairs; `OUTSIDE` beyond each and for padded pairs."""
    context_outputs: Int[Tensor, "B K H W"]
    """Their outputs, likewise."""
    context_sizes: Int[Tensor, "B K 2 2"]
    """(input, output) x (height, width) of each context pair; zeros for padded pairs."""
    tokens: Int[Tensor, "N L"]
    """Context pairs and query input as text, right-padded."""
    token_mask: Bool[Tensor, "N L"]
    """True for real tokens."""
    features: Float[Tensor, "N F"]
    """Transformation features averaged over the context pairs."""
    summary: Float[Tensor, "N S"]
    """Grid summary for the refiner."""
    task_index: Int[Tensor, " B"]
    """Row of the task among the training tasks; -1 for an unknown task."""
    dihedral: Int[Tensor, " B"]
    """Which of the 8 symmetries the whole task is seen under; 0 is none."""
    dropout_seed: Int[Tensor, " B"]
    """Which channels the agent drops while it learns the view is drawn from this number; with 0 it drops none."""

    @property
    def views(self) -> int:
        """Views of each query."""
        return len(self.query) // len(self.tokens)

    def of_views(self, values: Float[Tensor, "N ..."]) -> Float[Tensor, "B ..."]:
        """What belongs to each query, for each of its views."""
        # Not by repeat_interleave or index_select, whose gradients a GPU adds up in any order.
        return values[:, None].expand(-1, self.views, *values.shape[1:]).flatten(0, 1)

    def take(self, rows: Int[Tensor, " R"]) -> "QueryInputs":
        """Some of the views, for the agent: the fields that belong to a query are left as they are."""
        of_queries = ("tokens", "token_mask", "features", "summary")
        names = [each.name for each in fields(self) if each.name not in of_queries]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTargets:
    """What B views of N queries are scored against. Only losses, rewards and metrics may see it."""

    target: Int[Tensor, "B h w"]
    """The target grid, top left on a canvas of its own; `OUTSIDE` beyond it."""
    target_size: Int[Tensor, "B 2"]
    """Height and width of the target."""
    written: Int[Tensor, "N p q"]
    """The target in the form in which Qwen reads the query, which it learns to write."""
    written_size: Int[Tensor, "N 2"]
    """Height and width of it."""

    def take(self, rows: Int[Tensor, " R"]) -> "QueryTargets":
        """Those of some of the views; what Qwen writes is left as it is."""
        return replace(self, target=self.target[rows], target_size=self.target_size[rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryBatch:
    """N queries: their ids, what the models see, what they are scored against."""

    ids: tuple[str, ...]
    """`<task id>:<train|test>:<pair index>` of each query."""
    inputs: QueryInputs
    targets: QueryTargets

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids_of_views(self) -> tuple[str, ...]:
        """The id of the query that each view shows."""
        return tuple(query_id for query_id in self.ids for _ in range(self.inputs.views))

    def pin_memory(self) -> "QueryBatch":
        """Copy to page-locked memory, from which `to` a CUDA device does not wait for the copy. Needs CUDA."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "QueryBatch":
        """Copy to a device; from pinned memory to CUDA without waiting for the copy."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "QueryBatch":
        def changed(part: Any) -> Any:
            return replace(part, **{field.name: change(getattr(part, field.name)) for field in fields(part)})

        return replace(self, inputs=changed(self.inputs), targets=changed(self.targets))


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one process computes of a batch in one pass."""

    rows: tuple[int, ...]
    """Rows of the data set."""
    positions: tuple[int, ...]
    """Position of each in the batch, ascending."""
    is_padding: bool
    """True where the process has nothing left to compute: the one row repeats a query of the batch, without weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """Which process computes which queries of a batch, in which pass."""

    shares: tuple[tuple[Share, ...], ...]
    """Those of each process, one a pass, the longest queries first."""
    rows: tuple[int, ...]
    """The whole batch, in its order."""
    imbalance: float
    """The most loaded process's work over the mean process's, at least 1; what is padded counts as work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedBatch:
    """One batch of all processes, and what this one computes of it."""

    partition: Partition
    """Which process computes what."""
    ids: tuple[str, ...]
    """Ids of all its queries, in the order of the batch."""
    process: int
    """Number of this process."""
    shares: tuple[Share, ...]
    """This process's share for each of its passes."""
    queries: tuple[QueryBatch, ...]
    """The queries of each share, on the device."""

    def __len__(self) -> int:
        """Count the queries of all processes."""
        return len(self.ids)


def working_area(
    context: Sequence[Pair], query: UInt8[np.ndarray, "h w"], max_grid_size: int = MAX_SIDE
) -> tuple[int, int]:
    """Bound the height and width of an answer without looking at it.

    A side is the largest of the query's, the context's, and the query's scaled like the context's outputs to their
    inputs (the largest ratio, rounded up), at most `max_grid_size`. `context` are pairs with outputs.
    """
    height, width = query.shape
    for pair in context:
        assert pair.output is not None
        (rows_in, columns_in), (rows_out, columns_out) = pair.input.shape, pair.output.shape
        height = max(height, rows_in, rows_out, -(-query.shape[0] * rows_out // rows_in))
        width = max(width, columns_in, columns_out, -(-query.shape[1] * columns_out // columns_in))
    return min(height, max_grid_size), min(width, max_grid_size)


def stack_grids(grids: Sequence[UInt8[np.ndarray, "_ _"]], height: int, width: int) -> Int8[np.ndarray, "G H W"]:
    """Lay grids on canvases of one size, top left; `OUTSIDE` beyond each."""
    stack = np.full((len(grids), height, width), OUTSIDE, dtype=np.int8)
    for canvas, grid in zip(stack, grids, strict=True):
        canvas[: grid.shape[0], : grid.shape[1]] = grid
    return stack


def fit_canvas(grids: Int[Tensor, "G _ _"], height: int, width: int) -> Int[Tensor, "G {height} {width}"]:
    """The same grids on canvases of another size: cut off, or filled up with `OUTSIDE`."""
    grids = grids[:, :height, :width]
    return F.pad(grids, (0, width - grids.shape[2], 0, height - grids.shape[1]), value=OUTSIDE)
