"""The agent's own reading of a task's demonstration pairs."""

# B queries, K context pairs, H W canvas, N context tokens, D hidden, E condition.
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arcdist.data.batch import OUTSIDE, QueryInputs


def one_hot_colors(grid: Int[Tensor, "*shape"], num_colors: int) -> Float[Tensor, "*shape C1"]:
    """One-hot colours with a last channel for `OUTSIDE` cells: C1 = num_colors + 1."""
    return F.one_hot(grid.where(grid != OUTSIDE, num_colors), num_colors + 1).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What the agent knows of B tasks from their demonstration pairs alone."""

    keys: Float[Tensor, "B heads N Dh"]
    values: Float[Tensor, "B heads N Dh"]
    token_mask: Bool[Tensor, "B 1 1 N"]
    """True for tokens that hold a part of a pair."""
    summary: Float[Tensor, "B E"]
    """Mean over all cells of all pairs."""


class ContextEncoder(nn.Module):
    """Pairs -> one token a row and a column of each pair, for the query's cells to attend to.

    Input and output are laid over each other on the canvas, mixed by a 3x3 convolution and pooled along each axis:
    H + W tokens a pair in place of H * W keep attention linear in the side.
    """

    def __init__(self, *, num_colors: int, max_grid_size: int, hidden_dim: int, condition_dim: int, heads: int) -> None:
        super().__init__()
        self.num_colors = num_colors
        self.heads = heads
        width = max(16, hidden_dim // 2)
        self.cells = nn.Linear(2 * (num_colors + 1), width)
        self.rows = nn.Parameter(torch.randn(max_grid_size, width) * 0.1)
        self.columns = nn.Parameter(torch.randn(max_grid_size, width) * 0.1)
        self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.to_key_value = nn.Linear(width, 2 * hidden_dim)
        self.to_summary = nn.Linear(width, condition_dim)

    def forward(self, inputs: QueryInputs) -> Context:
        """Encode the context pairs of each query."""
        batch, pairs, height, width = inputs.context_inputs.shape
        grids = torch.cat(
            [one_hot_colors(g, self.num_colors) for g in (inputs.context_inputs, inputs.context_outputs)], dim=-1
        ).flatten(0, 1)  # [B*K, H, W, 2*C1]
        inside = (inputs.context_inputs != OUTSIDE) | (inputs.context_outputs != OUTSIDE)  # [B, K, H, W]
        weight = inside.flatten(0, 1)[..., None].float()

        cells = self.cells(grids) + self.rows[:height, None] + self.columns[:width]
        cells = cells * weight
        cells = F.silu(cells + self.mix(cells.movedim(-1, 1)).movedim(1, -1)) * weight  # [B*K, H, W, width]

        by_row = cells.sum(2) / weight.sum(2).clamp(min=1.0) + self.rows[:height]
        by_column = cells.sum(1) / weight.sum(1).clamp(min=1.0) + self.columns[:width]
        tokens = torch.cat([by_row, by_column], dim=1).reshape(batch, pairs * (height + width), -1)
        token_mask = torch.cat([inside.any(3), inside.any(2)], dim=2).reshape(batch, 1, 1, -1)

        keys, values = self.to_key_value(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        per_query = (batch, -1, cells.shape[-1])
        total = cells.reshape(per_query).sum(1) / weight.reshape(batch, -1, 1).sum(1).clamp(min=1.0)
        return Context(keys=keys, values=values, token_mask=token_mask, summary=self.to_summary(total))
