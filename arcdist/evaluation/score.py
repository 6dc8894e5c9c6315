"""Scores of the models on queries that they do not train on, and the floor beside them."""

# B queries.
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from arcdist.data import OUTSIDE, QueryBatch
from arcdist.distributed.collectives import all_reduce_sum
from arcdist.evaluation.answers import Predictions, answer, fit_canvas, grade
from arcdist.models import ARCPromptGuidedAgent, PermanentSolver, PromptOutput, QwenHybridPrompt
from arcdist.rl import Answer, PolicyRefinedAgent


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """The models that answer a query, as evaluation uses them."""

    read: Callable[[Tensor, Tensor, Tensor], PromptOutput]
    """`qwen` as it is called: by way of its engine, where one runs it."""
    qwen: QwenHybridPrompt
    agent: ARCPromptGuidedAgent
    solver: PermanentSolver
    refiner: PolicyRefinedAgent


@torch.no_grad()
def score(
    models: Predictor, batches: Iterable[tuple[QueryBatch, bool]], predictions: Predictions | None = None
) -> dict[str, float]:
    """Mean scores over all queries of all processes whose target is known, as shares between 0 and 1.

    `val/exact`, `val/cell`, `val/size`: the refined answer, the solver's weight included; `val/accuracy_delta`: share
    of cells that refinement gains; `floor/copy_exact`, `floor/copy_cell`: the query's input given as the answer.
    The refiner takes its policy's mean. Queries without a target are left out.

    Args:
        models: answer the queries.
        batches: this process's, each with whether it counts; one that does not is padding, answered because other
            processes may need this one's part in it. Every process has as many, and one at least.
        predictions: takes note of how each query is answered.
    """
    sums: dict[str, Tensor] = {}
    modules = (models.qwen, models.agent, models.solver)
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.eval()
    for batch, counts in batches:
        known = (batch.targets.target != OUTSIDE).flatten(1).any(1) & counts
        scored = _grades(models, batch, known, predictions if counts else None) | {"queries": torch.ones_like(known)}
        for name, values in scored.items():
            total = (values * known).float().sum()
            sums[name] = sums[name] + total if name in sums else total
    for module, was_training in modes:
        module.train(was_training)
    totals = torch.stack(list(all_reduce_sum(sums).values())).tolist()
    *means, queries = totals
    return {name: total / max(1.0, queries) for name, total in zip(sums, means, strict=False)}


def _grades(models: Predictor, batch: QueryBatch, known: Tensor, predictions: Predictions | None) -> dict[str, Tensor]:
    inputs, targets = batch.inputs, batch.targets
    prompt, control = models.read(inputs.tokens, inputs.token_mask, inputs.features)
    refined = models.refiner.refine_prompt(prompt, control, inputs.summary, deterministic=True).refined
    context = models.agent.read_context(inputs)
    before = models.agent(inputs, prompt, context)
    after = models.agent(inputs, refined, context)
    proposal = models.solver(prompt, inputs, batch.ids)

    first = grade(answer(before, inputs, targets, proposal.weigh(before.final_logits)), targets)
    logits = proposal.weigh(after.final_logits)
    said = answer(after, inputs, targets, logits)
    final = grade(said, targets)
    if predictions is not None:
        predictions.note(batch, known, final, after, said.size, logits)
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
