"""Scores of the models on queries that they do not train on, and the floor beside them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arcdist.data import OUTSIDE, QueryBatch, fit_canvas
from arcdist.distributed.collectives import all_reduce_sum
from arcdist.evaluation.answers import Predictions, answer, grade
from arcdist.models import ARCPromptGuidedAgent, PermanentSolver, PromptOutput, QwenHybridPrompt
from arcdist.rl import Answer, PolicyRefinedAgent


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """The models that answer a query, as evaluation uses them."""

    read: Callable[[Tensor, Tensor, Tensor], PromptOutput]
    """Calls `qwen`, through its engine if it has one."""
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
        batches: this process's, each with whether it counts; one that does not is padding, answered because Qwen may
            be sharded over the processes. Every process has the same number, at least one.
        predictions: collects how each query is answered.
    """
    modules: tuple[nn.Module, ...] = (models.qwen, models.agent, models.solver)
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    sums: dict[str, Tensor] = {}
    for batch, counts in batches:
        known = (batch.targets.target != OUTSIDE).flatten(1).any(1) & counts
        scores = _scores(models, batch, known, predictions if counts else None) | {"queries": torch.ones_like(known)}
        for name, values in scores.items():
            total = (values * known).float().sum()
            sums[name] = sums[name] + total if name in sums else total
    for module, mode in zip(modules, modes, strict=True):
        module.train(mode)
    *totals, queries = torch.stack(list(all_reduce_sum(sums).values())).tolist()
    return {name: total / max(1.0, queries) for name, total in zip(sums, totals, strict=False)}


def _scores(models: Predictor, batch: QueryBatch, known: Tensor, predictions: Predictions | None) -> dict[str, Tensor]:
    """Every score that is logged, of each query."""
    inputs, targets = batch.inputs, batch.targets
    prompt, control = models.read(inputs.tokens, inputs.token_mask, inputs.features)
    refined = models.refiner.refine_prompt(prompt, control, inputs.summary, deterministic=True).refined
    context = models.agent.read_context(inputs)
    before = models.agent(inputs, prompt, context)
    after = models.agent(inputs, refined, context)
    proposal = models.solver(prompt, inputs, batch.ids)

    first = grade(answer(before, inputs, targets, proposal.weigh(before.final_logits)), targets)
    logits = proposal.weigh(after.final_logits)
    final_answer = answer(after, inputs, targets, logits)
    final = grade(final_answer, targets)
    if predictions is not None:
        predictions.add(batch, known, final, after, final_answer.size, logits)
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
