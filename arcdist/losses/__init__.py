"""What a step minimises: the expected free energy, the loss of the predicted size, and the loss that joins them."""

from arcdist.losses.combined import combined_loss, hard_cell_weight, policy_gradient, size_loss
from arcdist.losses.efe import EFELoss, cell_mean, color_shares, consistency, of_some, query_mean

__all__ = [
    "EFELoss",
    "cell_mean",
    "color_shares",
    "combined_loss",
    "consistency",
    "hard_cell_weight",
    "of_some",
    "policy_gradient",
    "query_mean",
    "size_loss",
]
