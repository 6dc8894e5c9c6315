"""Scores of the models on queries that they do not train on, and the floor beside them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from arcdist.data import OUTSIDE, QueryBatch, fit_canvas
from arcdist.distributed.collectives import all_reduce_sum
from arcdist.evaluation.answers import Predictions, answer, grade
from arcdist.evaluation.predict import Predictor
from arcdist.rl import Answer


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
    response = models.respond(batch)
    before = models.agent.plan_until_stopped(inputs, inputs.of_views(response.prompt.prompt), response.context)

    first = grade(answer(before, inputs, targets, response.proposal.weigh(before.final_logits)), targets)
    final_answer = answer(response.plan, inputs, targets, response.logits)
    final = grade(final_answer, targets)
    if predictions is not None:
        predictions.add(batch, known, final, response.plan, final_answer.size, response.logits)
    copied = fit_canvas(inputs.query, *targets.target.shape[1:])
    floor = grade(Answer(grid=copied, size=inputs.query_size), targets)
    return {
        "val/exact": final.exact,
        "val/cell": final.cell,
        "val/size": final.size,
        "val/accuracy_delta": final.cell - first.cell,
        "floor/copy_exact": floor.exact,
        "floor/copy_cell": floor.cell,
    }
