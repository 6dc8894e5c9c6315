"""The goal-oriented loss of a step, and the weights and losses that enter it beside the EFE."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from arcdist.losses.means import query_mean

# B queries, G largest side of a grid.


class CombinedLoss(NamedTuple):
    """A loss that is reported and one that is backpropagated."""

    value: Float[Tensor, ""]
    """efe_weight x EFE - reward_weight x mean reward, detached."""
    surrogate: Float[Tensor, ""]
    """Has the gradient that `value` has in expectation; its own number means nothing."""


def combined_loss(
    efe: Float[Tensor, ""],
    mean_reward: Float[Tensor, ""],
    log_prob: Float[Tensor, " B"],
    advantage: Float[Tensor, " B"],
    efe_weight: float = 0.7,
    reward_weight: float = 0.3,
    *,
    query_weight: Float[Tensor, " B"] | None = None,
) -> CombinedLoss:
    """Join the EFE loss and the reward of the refinements.

    The mean reward is a constant to autograd. Its gradient is the score-function one (Williams 1992),
    E[(r - mean) / std x grad log pi], so the surrogate is efe_weight x EFE - reward_weight x sum_b w_b advantage_b
    log_prob_b, w = `query_weight` (sums to 1; default: every query alike). `log_prob` is a sum over all components of
    an action, as a log-probability is, so this gradient grows like the square root of their number.
    """
    value = efe_weight * efe - reward_weight * mean_reward
    surrogate = efe_weight * efe - reward_weight * query_mean(advantage.detach() * log_prob, query_weight)
    return CombinedLoss(value.detach(), surrogate)


def hard_cell_weight(mask_ratio: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Weight of a loss by the share of its cells that are hard: 0.5 where none is, 1 where all are."""
    return 0.5 + 0.5 * mask_ratio


def size_loss(
    size_logits: tuple[Float[Tensor, "B G"], Float[Tensor, "B G"]], target_size: Int[Tensor, "B 2"]
) -> Float[Tensor, " B"]:
    """Cross-entropy of height plus that of width, in nats, for each query; class k of the logits is the side k + 1."""
    height, width = (logits.float() for logits in size_logits)
    sides = target_size.long() - 1
    return F.cross_entropy(height, sides[:, 0], reduction="none") + F.cross_entropy(
        width, sides[:, 1], reduction="none"
    )
