"""The models: Qwen's prompt, the grid agent, the solver."""

from arcdist.models.agent import AgentOutput, ARCPromptGuidedAgent, Plan, predicted_size
from arcdist.models.cores import cells_within
from arcdist.models.qwen import (
    PromptCache,
    PromptOutput,
    QwenHybridPrompt,
    attention_share,
    training_flops,
    writing_flops,
)
from arcdist.models.qwen_source import UNSHARDED, Sharding
from arcdist.models.solver import PermanentSolver, Proposal, SolvedQueries

__all__ = [
    "UNSHARDED",
    "ARCPromptGuidedAgent",
    "AgentOutput",
    "PermanentSolver",
    "Plan",
    "PromptCache",
    "PromptOutput",
    "Proposal",
    "QwenHybridPrompt",
    "Sharding",
    "SolvedQueries",
    "attention_share",
    "cells_within",
    "predicted_size",
    "training_flops",
    "writing_flops",
]
