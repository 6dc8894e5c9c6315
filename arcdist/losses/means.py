"""Means that no padding can move: over a query's valid cells first, then over the queries."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# B queries, H W canvas, C colours.


def cell_mean(values: Float[Tensor, "B H W *F"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, " B *F"]:
    """Mean over the cells where `mask` holds; 0 for a query without any."""
    inside = mask.reshape(*mask.shape, *(1,) * (values.ndim - mask.ndim))
    cells = inside.sum(dim=(1, 2)).clamp_min(1)
    return torch.where(inside, values, 0.0).sum(dim=(1, 2)) / cells


def query_mean(values: Float[Tensor, " B"], query_weight: Float[Tensor, " B"] | None = None) -> Float[Tensor, ""]:
    """Weighted mean over queries; `query_weight` sums to 1, and none means every query alike."""
    return values.mean() if query_weight is None else (query_weight * values).sum()


def color_shares(grid: Int[Tensor, "B H W"], mask: Bool[Tensor, "B H W"], num_colors: int = 10) -> Float[Tensor, "B C"]:
    """Share of the masked cells that has each colour; a masked cell outside every grid has none of them."""
    colored = F.one_hot(grid.clamp_min(0).long(), num_colors) * (grid >= 0).unsqueeze(-1)
    return cell_mean(colored.float(), mask)
