"""The shaping reward of a refinement: how much better the refined answer is than the first one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arcdist.losses import cell_mean, color_shares

# B queries, K draws of the policy for each, h w the target's canvas, H W the query's canvas.

WEIGHTS = {"acc": 1.0, "size": 0.5, "color": 0.5, "rev": 0.5}
"""Of the improvements in the reward, by the names of `AnswerScores`."""
VARIANCE_FLOOR = 1e-6
"""Added to the variance of the rewards, so that equal rewards have advantages of 0 rather than of rounding errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the agent says about B queries under one prompt."""

    grid: Int[Tensor, "B h w"]
    """Predicted colours on the target's canvas; `OUTSIDE` where the agent has none."""
    size: Int[Tensor, "B 2"]
    """Predicted height and width."""
    reconstruction: Int[Tensor, "B H W"] | None = None
    """The query's input as the backward trajectory gives it, on the query's canvas; None if only the way ahead was
    planned, which has no reward."""

    def split(self, parts: int) -> "list[Answer]":
        """So many answers of equal length, the first rows first; all need the way back."""
        assert self.reconstruction is not None
        parted = zip(*(rows.chunk(parts) for rows in (self.grid, self.size, self.reconstruction)), strict=True)
        return [Answer(grid=grid, size=size, reconstruction=reconstruction) for grid, size, reconstruction in parted]

    @classmethod
    def joined(cls, answers: "Sequence[Answer]") -> "Answer":
        """The rows of several answers on like canvases, one after the other; all need the way back."""
        back = [each.reconstruction for each in answers if each.reconstruction is not None]
        grids, sizes = ([getattr(each, name) for each in answers] for name in ("grid", "size"))
        return cls(grid=torch.cat(grids), size=torch.cat(sizes), reconstruction=torch.cat(back))


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerScores:
    """Four scores of each answer, between 0 and 1."""

    acc: Float[Tensor, " B"]
    """Share of the target's cells that have the right colour."""
    size: Float[Tensor, " B"]
    """1 - mean error of the two sides relative to the target's, at least 0; 1 only for the right size."""
    color: Float[Tensor, " B"]
    """1 - total variation distance between the colours of the target's cells and those predicted there."""
    rev: Float[Tensor, " B"]
    """Share of the query's input cells that the backward trajectory gives back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewards:
    """The reward of each refinement and the four improvements that it weighs."""

    reward: Float[Tensor, " B"]
    d_acc: Float[Tensor, " B"]
    d_size: Float[Tensor, " B"]
    d_color: Float[Tensor, " B"]
    d_rev: Float[Tensor, " B"]


def score_answers(answer: Answer, target: Int[Tensor, "B h w"], input: Int[Tensor, "B H W"]) -> AnswerScores:
    """Score answers against the target and the query's input, both `OUTSIDE` (-1) beyond their grids.

    Raises:
        ValueError: the answers lack the way back.
    """
    if answer.reconstruction is None:
        raise ValueError("score_answers needs answers with the way back: call the agent itself, not its `plan`.")
    in_target, in_query = target >= 0, input >= 0
    target_size = torch.stack([in_target.any(dim=2).sum(dim=1), in_target.any(dim=1).sum(dim=1)], dim=1)
    side_error = (answer.size - target_size).abs() / target_size.clamp_min(1)
    # The target's shares sum to 1, so that what two histograms share is 1 - their total variation distance, also where
    # some predicted cells have no colour.
    in_common = torch.minimum(color_shares(target, in_target), color_shares(answer.grid, in_target))
    return AnswerScores(
        acc=cell_mean((answer.grid == target).float(), in_target),
        size=(1.0 - side_error.mean(dim=1)).clamp_min(0.0),
        color=in_common.sum(dim=-1),
        rev=cell_mean((answer.reconstruction == input).float(), in_query),
    )


def shaping_reward(
    before: Answer,
    after: Answer,
    target: Int[Tensor, "B h w"],
    input: Int[Tensor, "B H W"],
    reward_scale: float = 5.0,
) -> Rewards:
    """Reward of going from the answer `before` refinement to the one `after` it; `input` is the query's input grid.

    reward_scale x (1.0 d_acc + 0.5 d_size + 0.5 d_color + 0.5 d_rev), each a score's improvement.
    """
    first, refined = score_answers(before, target, input), score_answers(after, target, input)
    gains = {name: getattr(refined, name) - getattr(first, name) for name in WEIGHTS}
    reward = reward_scale * sum(weight * gains[name] for name, weight in WEIGHTS.items())
    return Rewards(reward=reward, **{f"d_{name}": gain for name, gain in gains.items()})


class RewardTotals(NamedTuple):
    """Sums over the rewarded answers of all processes, which give the mean and the variance of all rewards.

    Where the policy draws several times, a draw counts as its share of the answer.
    """

    queries: Float[Tensor, ""]
    reward: Float[Tensor, ""]
    squared_reward: Float[Tensor, ""]
    squared_residual: Float[Tensor, ""]
    """Of `residuals`."""

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Mean reward of a rewarded answer."""
        return self.reward / self.queries.clamp_min(1.0)

    @property
    def variance(self) -> Float[Tensor, ""]:
        """Population variance of the rewards."""
        return (self.squared_reward / self.queries.clamp_min(1.0) - self.mean.square()).clamp_min(0.0)

    def advantages(self, reward: Float[Tensor, "K B"]) -> Float[Tensor, "K B"]:
        """The advantages of K draws for each query: over all rewards for one draw, within the query for more.

        As in GRPO (Shao et al. 2024, arXiv:2402.03300) a query's own draws are the baseline: how easily it is improved
        plays no part. They are divided by the standard deviation of all residuals, not of the query's: that would make
        as much of draws that differ in a cell as of those that differ in all (Liu et al. 2025, arXiv:2503.20783).
        """
        if len(reward) == 1:
            return advantages(reward, self.mean, self.variance)
        variance = self.squared_residual / self.queries.clamp_min(1.0)
        return advantages(residuals(reward), torch.zeros_like(self.mean), variance)


def residuals(reward: Float[Tensor, "K B"]) -> Float[Tensor, "K B"]:
    """What each draw's reward exceeds the mean of its query's by; exactly 0 where all are equal."""
    return (reward[:, None] - reward).mean(1)


def advantages(
    reward: Float[Tensor, "*K B"], mean: Float[Tensor, ""], variance: Float[Tensor, ""]
) -> Float[Tensor, "*K B"]:
    """(reward - mean) / standard deviation, with the mean and variance of all processes' rewards."""
    return (reward - mean) / (variance + VARIANCE_FLOOR).sqrt()
