"""One training step, whole and in its order."""

# T steps, B queries, H W canvas, C colours, P prompt, A = P + 1 components of an action.
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arcdist.config import RewardConfig
from arcdist.data import QueryBatch
from arcdist.engine import Engines
from arcdist.evaluation import answer, canvas_target, grade
from arcdist.losses import (
    cell_mean,
    color_shares,
    combined_loss,
    consistency,
    hard_cell_weight,
    query_mean,
    size_loss,
)
from arcdist.models import AgentOutput, PromptOutput
from arcdist.rl import RewardTotals, advantages, shaping_reward
from arcdist.training.curriculum import DynamicMemoryThreshold
from arcdist.training.models import Models

REVERSIBILITY_WEIGHT = 0.1
"""Weight of the loss that teaches the backward trajectory to arrive at the query's input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """What a step takes from the configuration and the curriculum."""

    number: int
    """Steps done before this one."""
    size_weight: float
    memory_gate: DynamicMemoryThreshold
    reward: RewardConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What a step did, on the host."""

    metrics: dict[str, float]
    """Means over the batch, by their names in `steps.jsonl`."""
    group_norms: dict[str, float]
    """Gradient norm of each parameter group, before clipping."""
    tokens: int
    """Real tokens of the batch."""
    finite: bool
    """False if the step was skipped: no parameter has moved."""


def train_step(
    batch: QueryBatch,
    models: Models,
    engines: Engines,
    refiner_optimizer: torch.optim.Optimizer,
    noise: Float[Tensor, "B A"],
    settings: StepSettings,
) -> StepReport:
    """Train all models on a batch: two backward passes that meet in the prompt, then the refiner's own.

    Nothing moves before all gradients are known to be finite; then everything does.
    """
    inputs, targets = batch.inputs, batch.targets
    with engines.autocast():
        prompt, control = read_prompts(models, batch, settings.number)  # [B, P], [B, P]
        border = prompt.detach().requires_grad_()  # The one tensor that crosses between the engines.

        context = models.agent.read_context(inputs)
        with torch.no_grad():
            before = models.agent(inputs, border, context)
        refinement = models.refiner.refine_prompt(border, control.detach(), inputs.summary, noise=noise)
        after = models.agent(inputs, refinement.refined, context)
        proposal = models.solver(border.detach(), inputs, batch.ids)
    # The solver learns beside the agent, not in its place: were their mixture the agent's own answer, the agent would
    # leave to the memory what it could learn itself.
    final_logits = proposal.weigh(after.final_logits.detach())

    target, mask = canvas_target(targets, after)
    terms = models.efe.per_query(
        after.forward_logits,
        after.backward_logits,
        after.state_logits,
        after.obs_probs,
        after.final_logits,
        target,
        refinement.refined,
        mask,
    )
    scores = grade(answer(after, inputs, targets, final_logits), targets)
    rewards = shaping_reward(
        answer(before, inputs, targets),
        answer(after, inputs, targets),
        targets.target,
        inputs.query,
        settings.reward.reward_scale,
    )
    totals = RewardTotals.of(rewards.reward)
    advantage = advantages(rewards.reward, totals.mean, totals.variance)

    mask_ratio = 1.0 - scores.cell
    size = size_loss(after.size_logits.unbind(1), targets.target_size)
    solver = consistency(final_logits, target, mask)
    reversibility = _reversibility_loss(after, inputs.query)
    energy = hard_cell_weight(mask_ratio) * terms["total"] + settings.size_weight * size
    loss = combined_loss(
        query_mean(energy + solver + REVERSIBILITY_WEIGHT * reversibility),
        totals.mean,
        refinement.log_prob,
        advantage,
        settings.reward.efe_weight,
        settings.reward.reward_weight,
    )
    engines.grid.backward(loss.surrogate)
    if prompt.requires_grad:
        engines.qwen.backward(prompt, border.grad)

    refiner = models.refiner.accumulate_gradient(refinement.transition, advantage)

    norms = engines.gradient_norms() | {"refiner": refiner["grad_norm"]}
    metrics = {
        "loss": loss.value,
        **{f"efe/{name}": query_mean(values) for name, values in terms.items()},
        "size_loss": query_mean(size),
        "solver_loss": query_mean(solver),
        "reversibility_loss": query_mean(reversibility),
        "reward/mean": totals.mean,
        "reward/std": totals.variance.sqrt(),
        **{f"reward/{name}": getattr(rewards, name).mean() for name in ("d_acc", "d_size", "d_color", "d_rev")},
        "train/exact": scores.exact.float().mean(),
        "train/cell": scores.cell.mean(),
        "mask_ratio": mask_ratio.mean(),
        "solver/confidence": proposal.confidence_logit.detach().sigmoid().mean(),
        "tokens": inputs.token_mask.sum(),
    }
    host, group_norms, solved = _to_host(metrics, norms, settings.memory_gate.admits(scores.cell))
    finite = all(map(math.isfinite, (host["loss"], *group_norms.values())))
    report = StepReport(tokens=int(host.pop("tokens")), metrics=host, group_norms=group_norms, finite=finite)
    if not finite:
        engines.skip()
        return report

    engines.step()
    refiner_optimizer.step()
    models.averaged_agent.update()
    models.efe.observe(color_shares(target, mask).mean(0))
    models.solver.remember(
        ids=[batch.ids[row] for row in solved],
        features=border.detach()[solved],
        queries=inputs.query[solved],
        outcomes=target[solved],
        exact=scores.exact[solved],
        step=settings.number,
    )
    return report


def read_prompts(models: Models, batch: QueryBatch, step: int) -> PromptOutput:
    """Qwen's prompts; with `qwen.every` > 1 a query's last one while it is good, without a gradient.

    Prompts are kept by query, not by task: another query of the task has this one's target in its context.
    """
    inputs = batch.inputs
    if models.qwen.every == 1:
        return models.qwen(inputs.tokens, inputs.token_mask, inputs.features)
    cached = models.prompts.lookup(batch.ids, step)
    rows = cached.missing
    if not len(rows):
        return cached.output
    computed = models.qwen(inputs.tokens[rows], inputs.token_mask[rows], inputs.features[rows])
    models.prompts.store([batch.ids[row] for row in rows.tolist()], computed, step)
    return cached.fill(computed)


def _reversibility_loss(output: AgentOutput, query: Tensor) -> Float[Tensor, " B"]:
    """Cross-entropy of the way back with the query's input, a mean over its cells."""
    surprise = -output.reconstruction_logits.gather(-1, query.clamp_min(0)[..., None])[..., 0]
    return cell_mean(surprise, query >= 0)


def _to_host(
    metrics: dict[str, Tensor], norms: dict[str, Tensor], admitted: Bool[Tensor, " B"]
) -> tuple[dict[str, float], dict[str, float], list[int]]:
    """Read everything that the host needs of a step in one transfer, the step's only wait for the device."""
    numbers = torch.stack([value.detach().float() for value in (*metrics.values(), *norms.values())])
    values = torch.cat([numbers, admitted.float()]).tolist()
    rows = values[len(numbers) :]
    return (
        dict(zip(metrics, values, strict=False)),
        dict(zip(norms, values[len(metrics) :], strict=False)),
        [row for row, is_in in enumerate(rows) if is_in],
    )
