"""The refiner that edits prompts, and the reward that says whether an edit helped."""

from arcdist.rl.refiner import PolicyRefinedAgent, RefinedPrompt, Transition
from arcdist.rl.rewards import (
    Answer,
    AnswerScores,
    Rewards,
    RewardTotals,
    advantages,
    residuals,
    score_answers,
    shaping_reward,
)

__all__ = [
    "Answer",
    "AnswerScores",
    "PolicyRefinedAgent",
    "RefinedPrompt",
    "RewardTotals",
    "Rewards",
    "Transition",
    "advantages",
    "residuals",
    "score_answers",
    "shaping_reward",
]
