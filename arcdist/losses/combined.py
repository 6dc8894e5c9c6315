"""The goal-oriented loss of a step, and the weights and losses that enter it beside the EFE."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# B queries, G largest side of a grid, P prompt.


def combined_loss(
    energy: Float[Tensor, ""], mean_reward: Float[Tensor, ""], efe_weight: float = 0.7, reward_weight: float = 0.3
) -> Float[Tensor, ""]:
    """efe_weight x energy - reward_weight x mean reward: what a step reports, and what it backpropagates.

    The mean reward is a constant to autograd, so a step backpropagates it as 0; its gradient is `policy_gradient`.
    """
    return efe_weight * energy - reward_weight * mean_reward


def policy_gradient(
    score: Float[Tensor, "*B P"],
    advantage: Float[Tensor, "*B"],
    weight: Float[Tensor, "*B"],
    reward_weight: float = 0.3,
) -> Float[Tensor, "*B P"]:
    """Gradient of the combined loss's reward in the prompts, -reward_weight x w_b advantage_b grad log_prob_b.

    The score-function gradient (Williams 1992) E[(r - mean) / std x grad log pi] of the mean reward. It needs the
    rewards of all queries as numbers only, so it can be made once they are known, whatever else was backpropagated
    before. A log-probability is a sum over all components of an action, so this grows like the square root of their
    number.

    Args:
        score: derivative of the log-probability of what was drawn for each query in its own prompt.
        advantage: (reward - mean) / standard deviation; of several draws for a query each has its own.
        weight: sums to 1 over all queries and draws.
        reward_weight: share of the reward in the combined loss.
    """
    return -reward_weight * (weight * advantage).unsqueeze(-1) * score


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
