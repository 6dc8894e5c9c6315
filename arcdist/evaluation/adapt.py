"""Test-time training: a copy of the models learns the demonstrations of one task before it answers."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from arcdist.data import OUTSIDE, Collator, Query, QueryBatch, draw_augmentation, fit_canvas
from arcdist.evaluation.predict import Predictor
from arcdist.losses import consistency, size_loss
from arcdist.models import ARCPromptGuidedAgent, PromptOutput
from arcdist.rng import stream

Part = Literal["agent", "qwen", "both"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapting:
    """How a task is learned."""

    steps: int
    lr: float
    part: Part = "agent"
    batch_size: int = 16
    seed: int = 0
    dihedral: bool = True
    """Whether a step draws symmetries."""
    colors: bool = False
    """Whether a step permutes the colours 1 to 9."""
    tell_symmetry: bool = True
    """Whether the models have learned symmetries, and are told of them."""

    def learns(self, demonstrations: Sequence[Query]) -> bool:
        """Whether something is learned from them."""
        return self.steps > 0 and len(demonstrations) > 0


@contextmanager
def adapted(
    models: Predictor,
    collator: Collator,
    task_id: str,
    demonstrations: Sequence[Query],
    settings: Adapting,
    device: torch.device,
) -> Iterator[tuple[Predictor, Collator]]:
    """Give the models after some steps on a task's demonstrations, each held out in turn; then forget them.

    No test pair is looked at. The agent is a copy, in which the task has a vector of its own: the one that it has
    learned, or zeros for a task that was never trained on. Qwen's adapters are trained in place and put back.

    Args:
        models: in evaluation mode.
        collator: of queries without augmentation.
        task_id: of the task.
        demonstrations: its queries; without any, or without steps, nothing is learned.
        settings: of the training.
        device: of the models.
    """
    if not settings.learns(demonstrations):
        yield models, collator
        return
    agent = _with_own_vector(models.agent, collator.task_rows.get(task_id, -1))
    collator = replace(collator, task_rows={task_id: 0})
    trains_qwen, trains_agent = settings.part != "agent", settings.part != "qwen"
    of_qwen = [parameter for group in models.qwen.trainable_parameters().values() for parameter in group]
    kept = [parameter.detach().clone() for parameter in of_qwen] if trains_qwen else []
    trained = (of_qwen if trains_qwen else []) + (list(agent.parameters()) if trains_agent else [])
    agent.requires_grad_(trains_agent)
    own = replace(models, agent=agent)
    # What Qwen reads in its own form, and with weights that stay, is the same in every step.
    refined = None if trains_qwen or collator.reads_views else _refined(own, collator, demonstrations, device)
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    try:
        with torch.enable_grad():
            for step in range(settings.steps):
                batch = _batch(collator, demonstrations, step, task_id, settings).to(device)
                if refined is None:
                    with torch.set_grad_enabled(trains_qwen):
                        prompts = own.refined(PromptOutput(*own.read(*_text(batch))[:2]), batch)
                else:
                    prompts = refined[_places(demonstrations, step, settings)]
                loss = _loss(own, batch, prompts)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * (1 - step / settings.steps)
                optimizer.step()
        optimizer.zero_grad()
        yield own, collator
    finally:
        with torch.no_grad():
            for parameter, before in zip(of_qwen, kept, strict=False):
                parameter.copy_(before)


def _with_own_vector(agent: ARCPromptGuidedAgent, row: int) -> ARCPromptGuidedAgent:
    """A copy whose table of task vectors has one task, with the vector of a row, or zeros for row -1."""
    table, agent.task_vectors = agent.task_vectors, None
    try:
        copied = copy.deepcopy(agent)
    finally:
        agent.task_vectors = table
    if table is not None:
        vectors = table.weight.detach()
        own = nn.Embedding(2, vectors.shape[1], padding_idx=0, device=vectors.device, dtype=vectors.dtype)
        with torch.no_grad():
            own.weight[0] = 0.0
            own.weight[1] = vectors[row + 1]  # Row 0 is the unknown task.
        copied.task_vectors = own
    return copied.eval()


def _places(demonstrations: Sequence[Query], step: int, settings: Adapting) -> list[int]:
    """The demonstrations of a step: all in turn."""
    first = step * settings.batch_size
    return [number % len(demonstrations) for number in range(first, first + settings.batch_size)]


def _text(batch: QueryBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.inputs.tokens, batch.inputs.token_mask, batch.inputs.features


@torch.no_grad()
def _refined(
    models: Predictor, collator: Collator, demonstrations: Sequence[Query], device: torch.device
) -> torch.Tensor:
    """The refined prompt of each demonstration that is held out, read one by one."""
    batches = (collator([query]).to(device) for query in demonstrations)
    return torch.cat([models.refined(PromptOutput(*models.read(*_text(batch))), batch) for batch in batches])


def _batch(
    collator: Collator, demonstrations: Sequence[Query], step: int, task_id: str, settings: Adapting
) -> QueryBatch:
    """Demonstrations in turn, each under symmetries of its own."""
    queries, augmentations = [], []
    for number, place in enumerate(_places(demonstrations, step, settings), start=step * settings.batch_size):
        query = demonstrations[place]
        rng = stream(settings.seed, "adapt", number, task_id)
        queries.append(query)
        augmentations.append(
            draw_augmentation(
                rng,
                dihedral=settings.dihedral,
                colors=settings.colors,
                order=True,
                num_pairs=len(query.context),
            )
        )
    return collator.collate(queries, augmentations, tell_symmetry=settings.tell_symmetry)


def _loss(models: Predictor, batch: QueryBatch, prompts: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every planning step against the target, and that of the size; a mean over the queries."""
    targets = batch.targets
    plan = models.agent.plan(batch.inputs, prompts)
    target = fit_canvas(targets.target, *plan.area.shape[1:])
    mask = (target != OUTSIDE) & plan.area
    steps = torch.stack([consistency(logits, target, mask) for logits in plan.forward_logits]).mean(0)
    height, width = plan.size_logits.unbind(1)
    return (steps + size_loss((height, width), targets.target_size)).mean()
