"""The models: Qwen's prompt, the grid agent, the solver."""

from arcdist.models.agent import AgentOutput, ARCPromptGuidedAgent
from arcdist.models.ema import EMA
from arcdist.models.prompt_cache import PromptCache
from arcdist.models.qwen_prompt import PromptOutput, QwenHybridPrompt
from arcdist.models.qwen_work import attention_share, training_flops
from arcdist.models.random_body import UNSHARDED, Sharding
from arcdist.models.size_head import predicted_size
from arcdist.models.solver import PermanentSolver, Proposal

__all__ = [
    "EMA",
    "UNSHARDED",
    "ARCPromptGuidedAgent",
    "AgentOutput",
    "PermanentSolver",
    "PromptCache",
    "PromptOutput",
    "Proposal",
    "QwenHybridPrompt",
    "Sharding",
    "attention_share",
    "predicted_size",
    "training_flops",
]
