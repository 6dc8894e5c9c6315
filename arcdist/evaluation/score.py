"""Scores of the models on queries that they do not train on, and the floor beside them."""

# B queries.
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from arcdist.data import OUTSIDE, QueryBatch
from arcdist.evaluation.answers import answer, fit_canvas, grade
from arcdist.models import ARCPromptGuidedAgent, PermanentSolver, QwenHybridPrompt
from arcdist.rl import Answer, PolicyRefinedAgent


@dataclass(frozen=True, kw_only=True, slots=True)
class Answerer:
    """The models that answer a query, as evaluation uses them."""

    qwen: QwenHybridPrompt
    agent: ARCPromptGuidedAgent
    solver: PermanentSolver
    refiner: PolicyRefinedAgent


@torch.no_grad()
def score(models: Answerer, batches: Iterable[QueryBatch]) -> dict[str, float]:
    """Mean scores over all queries whose target is known, as shares between 0 and 1.

    `val/exact`, `val/cell`, `val/size`: the refined answer, the solver's weight included; `val/accuracy_delta`: share
    of cells that refinement gains; `floor/copy_exact`, `floor/copy_cell`: the query's input given as the answer.
    The refiner takes its policy's mean. Queries without a target are left out.
    """
    sums: dict[str, Tensor | float] = defaultdict(float)
    modules = (models.qwen, models.agent, models.solver)
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.eval()
    for batch in batches:
        known = (batch.targets.target != OUTSIDE).flatten(1).any(1)
        for name, values in _grades(models, batch).items():
            sums[name] = sums[name] + (values * known).float().sum()
        sums["queries"] = sums["queries"] + known.sum()
    for module, was_training in modes:
        module.train(was_training)
    queries = max(1.0, float(sums.pop("queries")))
    return {name: float(total) / queries for name, total in sums.items()}


def _grades(models: Answerer, batch: QueryBatch) -> dict[str, Tensor]:
    inputs, targets = batch.inputs, batch.targets
    prompt, control = models.qwen(inputs.tokens, inputs.token_mask, inputs.features)
    refined = models.refiner.refine_prompt(prompt, control, inputs.summary, deterministic=True).refined
    context = models.agent.read_context(inputs)
    before = models.agent(inputs, prompt, context)
    after = models.agent(inputs, refined, context)
    proposal = models.solver(prompt, inputs, batch.ids)

    first, final = (
        grade(answer(output, inputs, targets, proposal.weigh(output.final_logits)), targets)
        for output in (before, after)
    )
    copied = fit_canvas(inputs.query, *targets.target.shape[1:])
    floor = grade(Answer(grid=copied, size=inputs.query_size, reconstruction=inputs.query), targets)
    return {
        "val/exact": final.exact,
        "val/cell": final.cell,
        "val/size": final.size,
        "val/accuracy_delta": final.cell - first.cell,
        "floor/copy_exact": floor.exact,
        "floor/copy_cell": floor.cell,
    }
