"""The five models of a run, built from its configuration."""

import copy
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from arcdist.config import Config
from arcdist.config.schema import keys
from arcdist.losses import EFELoss
from arcdist.models import UNSHARDED, ARCPromptGuidedAgent, PermanentSolver, PromptCache, QwenHybridPrompt, Sharding
from arcdist.rl import PolicyRefinedAgent

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class EMA(Generic[ModuleT]):
    """Holds a second copy of a module; each `update` moves it towards the trained one.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the average is of use from the first steps on.
    A decay of 0 makes `module` the trained module itself.
    """

    def __init__(self, module: ModuleT, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.trained = module
        self.module = module
        if decay > 0:
            self.module = copy.deepcopy(module).requires_grad_(False)
            self.module.eval()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again with the trained module's present weights."""
        self.updates = 0
        torch._foreach_copy_(list(self.module.parameters()), list(self.trained.parameters()))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the trained module's present weights."""
        if self.module is self.trained:
            return
        self.updates += 1
        share = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(self.trained.parameters()), share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """What is trained together, and the average of the agent that validation uses."""

    qwen: QwenHybridPrompt
    agent: ARCPromptGuidedAgent
    solver: PermanentSolver
    efe: EFELoss
    refiner: PolicyRefinedAgent
    averaged_agent: EMA[ARCPromptGuidedAgent]
    prompts: PromptCache
    """Prompts that serve several batches, where `qwen.every` > 1."""


def build_models(config: Config, num_tasks: int, device: torch.device, sharding: Sharding = UNSHARDED) -> Models:
    """Build all models; their first weights depend on `train.seed` alone.

    Each takes the keys of its section of the configuration by their own names.

    Args:
        config: of the run.
        num_tasks: training tasks, for the table of task vectors.
        device: where kept prompts belong.
        sharding: how Qwen's frozen base is shared out over processes.

    Raises:
        PlatformError: Qwen's weights cannot be had.
        ConfigError: a LoRA target that the model lacks.
    """
    torch.manual_seed(config.train.seed)
    width, side = config.qwen.prompt_dim, config.agent.max_grid_size
    qwen = QwenHybridPrompt(**keys(config.qwen), seed=config.train.seed, sharding=sharding)
    agent = ARCPromptGuidedAgent(**keys(config.agent), prompt_dim=width, num_tasks=num_tasks)
    return Models(
        qwen=qwen,
        agent=agent,
        solver=PermanentSolver(**keys(config.solver), feature_dim=width, max_grid_size=side),
        efe=EFELoss(**keys(config.efe, without=["reversibility_weight"]), max_grid_size=side, prompt_dim=width),
        refiner=PolicyRefinedAgent(**keys(config.refiner), rl_prompt_dim=width, rl_ctrl_dim=width),
        averaged_agent=EMA(agent, agent.ema_decay),
        prompts=PromptCache(config.qwen.every, width, device),
    )
