"""The five models of a run, built from its configuration."""

import copy
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from arcdist.config import Config
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
        """Begin anew with the trained module's present weights."""
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

    Args:
        config: of the run.
        num_tasks: training tasks, for the table of task vectors.
        device: where kept prompts belong.
        sharding: how Qwen's frozen base is shared out over processes.

    Raises:
        PlatformError: Qwen's weights cannot be had.
        ConfigError: a LoRA target that the model lacks.
    """
    qwen, agent, efe, refiner, solver = config.qwen, config.agent, config.efe, config.refiner, config.solver
    torch.manual_seed(config.train.seed)
    prompt_model = QwenHybridPrompt(
        model=qwen.model,
        prompt_dim=qwen.prompt_dim,
        numeric_in_dim=qwen.numeric_in_dim,
        fuse=qwen.fuse,
        control_weight=qwen.control_weight,
        lora_r=qwen.lora_r,
        lora_alpha=qwen.lora_alpha,
        lora_dropout=qwen.lora_dropout,
        every=qwen.every,
        init=qwen.init,
        dtype=qwen.dtype,
        lora_targets=qwen.lora_targets,
        gradient_checkpointing=qwen.gradient_checkpointing,
        seed=config.train.seed,
        sharding=sharding,
    )
    grid_agent = ARCPromptGuidedAgent(
        kind=agent.kind,
        max_grid_size=agent.max_grid_size,
        num_colors=agent.num_colors,
        hidden_dim=agent.hidden_dim,
        prompt_dim=qwen.prompt_dim,
        max_steps=agent.max_steps,
        num_tasks=num_tasks,
        task_vectors=agent.task_vectors,
        ema_decay=agent.ema_decay,
    )
    return Models(
        qwen=prompt_model,
        agent=grid_agent,
        solver=PermanentSolver(
            capacity=solver.capacity,
            feature_dim=qwen.prompt_dim,
            top_k=solver.top_k,
            max_grid_size=agent.max_grid_size,
            num_colors=agent.num_colors,
        ),
        efe=EFELoss(
            lambda_risk=efe.lambda_risk,
            lambda_amb=efe.lambda_amb,
            lambda_step=efe.lambda_step,
            lambda_cons=efe.lambda_cons,
            lambda_bi=efe.lambda_bi,
            lambda_z=efe.lambda_z,
            lambda_prompt=efe.lambda_prompt,
            max_grid_size=agent.max_grid_size,
            num_colors=agent.num_colors,
            prompt_dim=qwen.prompt_dim,
        ),
        refiner=PolicyRefinedAgent(
            rl_prompt_dim=refiner.rl_prompt_dim,
            rl_ctrl_dim=refiner.rl_ctrl_dim,
            rl_feat_dim=refiner.rl_feat_dim,
            rl_hidden=refiner.rl_hidden,
            rl_delta_scale=refiner.rl_delta_scale,
            rl_lr=refiner.rl_lr,
            rl_entropy_coef=refiner.rl_entropy_coef,
            rl_value_coef=refiner.rl_value_coef,
            rl_icm_coef=refiner.rl_icm_coef,
            rl_grad_clip=refiner.rl_grad_clip,
        ),
        averaged_agent=EMA(grid_agent, grid_agent.ema_decay),
        prompts=PromptCache(qwen.every, qwen.prompt_dim, device),
    )
