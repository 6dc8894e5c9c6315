"""The engines of a run: which parameters each trains, how fast, on what schedule."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from arcdist.config import Config, OptimConfig
from arcdist.engine import Engine, Engines, OptimizerSettings, ParameterGroup, PlainEngine, Precision
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


def build_engines(
    accelerator: Accelerator, models: Models, config: Config, total_steps: int, zero: Mapping[str, Any] | None = None
) -> Engines:
    """Give every trainable parameter its engine and its learning rate.

    Args:
        accelerator: places the models.
        models: of the run.
        config: of the run.
        total_steps: length of the schedule.
        zero: DeepSpeed's whole configuration, for an accelerator that was started under DeepSpeed.
    """
    optim = config.optim
    settings = OptimizerSettings(
        schedule=warmup_cosine(optim.warmup_steps, total_steps, optim.final_lr_share),
        max_grad_norm=optim.max_grad_norm,
        weight_decay=optim.weight_decay,
        betas=(0.9, optim.beta2),
    )
    precision = Precision(config.train.precision, torch.device(accelerator.device))
    qwen_groups = [
        ParameterGroup(name=name, parameters=parameters, lr=optim.qwen_lr)
        for name, parameters in models.qwen.trainable_parameters().items()
    ]
    grid_module = nn.ModuleDict({"agent": models.agent, "solver": models.solver, "efe": models.efe})
    refiner = ParameterGroup(name="refiner", parameters=list(models.refiner.parameters()), lr=config.refiner.rl_lr)
    # A policy near zero is no likelier than another, and its own learning needs no schedule.
    refiner_settings = OptimizerSettings(
        schedule=lambda _step: 1.0, max_grad_norm=config.refiner.rl_grad_clip, weight_decay=0.0, betas=(0.9, 0.999)
    )
    qwen: Engine
    if zero is None:
        qwen = PlainEngine(accelerator, models.qwen, qwen_groups, settings, precision)
    else:
        from arcdist.engine.deepspeed import DeepSpeedEngine

        qwen = DeepSpeedEngine(accelerator, models.qwen, qwen_groups, settings, precision, zero)
    return Engines(
        qwen=qwen,
        grid=PlainEngine(accelerator, grid_module, _grid_groups(models, optim), settings, precision),
        refiner=PlainEngine(accelerator, models.refiner, [refiner], refiner_settings, precision),
        precision=precision,
    )


def _grid_groups(models: Models, optim: OptimConfig) -> list[ParameterGroup]:
    lr = optim.agent_lr
    table = [] if models.agent.task_vectors is None else list(models.agent.task_vectors.parameters())
    rows = {id(parameter) for parameter in table}
    agent = [parameter for parameter in models.agent.parameters() if id(parameter) not in rows]
    groups = [
        ParameterGroup(name="agent", parameters=agent, lr=lr),
        ParameterGroup(name="solver", parameters=list(models.solver.parameters()), lr=lr * optim.solver_lr_scale),
        ParameterGroup(name="efe", parameters=list(models.efe.parameters()), lr=lr * optim.efe_lr_scale),
    ]
    if table:
        scaled = lr * optim.task_vector_lr_scale
        groups.append(ParameterGroup(name="task_vectors", parameters=table, lr=scaled))
    return groups
