"""The parameter groups of the two engines and the schedule that they share."""

import math
from collections.abc import Callable

from accelerate import Accelerator
from torch import nn

from arcdist.config import OptimConfig
from arcdist.engine import Engines, ParameterGroup, PlainEngine
from arcdist.training.models import Models


def warmup_cosine(warmup_steps: int, total_steps: int, final_share: float) -> Callable[[int], float]:
    """Share of the peak learning rate after so many steps: linear warm-up, then half a cosine down to `final_share`.

    The warm-up takes at most a tenth of the run.
    """
    warmup = max(1, min(warmup_steps, total_steps // 10))

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return share


def build_engines(accelerator: Accelerator, models: Models, optim: OptimConfig, total_steps: int) -> Engines:
    """Give every trainable parameter its engine and its learning rate."""
    schedule = warmup_cosine(optim.warmup_steps, total_steps, optim.final_lr_share)
    lr = optim.agent_lr
    table = [] if models.agent.task_vectors is None else list(models.agent.task_vectors.parameters())
    rows = {id(parameter) for parameter in table}
    agent = [parameter for parameter in models.agent.parameters() if id(parameter) not in rows]
    grid_groups = [
        ParameterGroup(name="agent", parameters=agent, lr=lr),
        ParameterGroup(name="solver", parameters=list(models.solver.parameters()), lr=lr * optim.solver_lr_scale),
        ParameterGroup(name="efe", parameters=list(models.efe.parameters()), lr=lr * optim.efe_lr_scale),
    ]
    if table:
        scaled = lr * optim.task_vector_lr_scale
        grid_groups.append(ParameterGroup(name="task_vectors", parameters=table, lr=scaled))
    qwen_groups = [
        ParameterGroup(name=name, parameters=parameters, lr=optim.qwen_lr)
        for name, parameters in models.qwen.trainable_parameters().items()
    ]
    grid_module = nn.ModuleDict({"agent": models.agent, "solver": models.solver, "efe": models.efe})

    def engine(module: nn.Module, groups: list[ParameterGroup]) -> PlainEngine:
        return PlainEngine(
            accelerator,
            module,
            groups,
            schedule=schedule,
            max_grad_norm=optim.max_grad_norm,
            weight_decay=optim.weight_decay,
            betas=(0.9, optim.beta2),
        )

    return Engines(qwen=engine(models.qwen, qwen_groups), grid=engine(grid_module, grid_groups))
