"""One training step, whole and in its order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arcdist.config import Config, RewardConfig
from arcdist.data import QueryBatch
from arcdist.data.batch import DistributedBatch, Share
from arcdist.distributed.collectives import all_reduce_sum, gather_rows
from arcdist.engine import Engines
from arcdist.evaluation import Grades, answer, canvas_target, grade
from arcdist.losses import (
    color_shares,
    combined_loss,
    consistency,
    hard_cell_weight,
    of_some,
    policy_gradient,
    query_mean,
    size_loss,
)
from arcdist.models import AgentOutput, Proposal, SolvedQueries
from arcdist.regions import region
from arcdist.rl import Answer, RefinedPrompt, Rewards, RewardTotals, Transition, residuals, shaping_reward
from arcdist.training.models import Models, PromptReading, keep_prompts, read_prompts

# N queries of a pass, B views of them, R planned backwards, r of these rewarded, K draws of the policy for a query,
# P prompt, A = P + 1 components of an action, H W canvas, C colours, M metrics, G gains, W processes.


GAINS = {f"d_{name}": f"reward/d_{name}" for name in ("acc", "size", "color", "rev")}
"""What a reward is made of, by its names in `Rewards` and in the log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """What a step takes from the configuration and the curriculum, and what this process reports with it."""

    config: Config
    number: int
    """Steps done before this one."""
    size_weight: float
    """Weight of the size loss."""
    memory_threshold: float
    """Cell accuracy that a query must exceed to enter the solver's memory; an exact grid always enters."""
    stop: bool = False
    """This process was asked to stop."""
    preempted: bool = False
    """It was asked to stop because its machine is needed for something else."""
    save_failed: bool = False
    """It could not write a checkpoint."""
    seconds: float = 0.0
    """The time that the run has taken, by this process's clock."""


class Signals(NamedTuple):
    """What a process tells the others with a step."""

    stop: bool
    preempted: bool
    save_failed: bool
    seconds: float
    """The time that the run has taken, by its own clock."""
    broken: bool
    """Its own losses or rewards are not finite."""
    admitted: int
    """Views of queries that it gives to the solver's memory, which keeps one of each query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What a step did on all processes, on the host of each."""

    metrics: dict[str, float]
    """Means over the views of the batch, by their names in `steps.jsonl`; of rewards over the views rewarded, `lm_loss`
    over the outputs written."""
    group_norms: dict[str, float]
    """Gradient norm of each parameter group, before clipping."""
    queries: int
    """Views of queries that the agent has learned."""
    tokens: int
    """Real tokens of the batch's prompts."""
    finite: bool
    """False if the step was skipped: no parameter has moved."""
    signals: tuple[Signals, ...]
    """Of each process."""
    written: int = 0
    """Queries whose output Qwen was taught to write; without any there is no `lm_loss`."""
    rewarded: int = 0
    """Views that were rewarded; without any the rewards are 0."""

    @property
    def stop(self) -> bool:
        """Whether some process was asked to stop."""
        return any(process.stop for process in self.signals)

    @property
    def preempted(self) -> bool:
        """Whether some process was asked to stop because its machine is needed for something else."""
        return any(process.preempted for process in self.signals)

    @property
    def seconds(self) -> float:
        """The time that the run has taken, by the clock of process 0, rounded to float32."""
        return self.signals[0].seconds

    @property
    def save_failed(self) -> bool:
        """Whether some process could not write a checkpoint."""
        return any(process.save_failed for process in self.signals)

    @property
    def not_finite_on(self) -> tuple[int, ...]:
        """The processes whose own losses or rewards are not finite."""
        return tuple(rank for rank, process in enumerate(self.signals) if process.broken)


def train_step(
    batch: DistributedBatch,
    models: Models,
    engines: Engines,
    noise: Sequence[Float[Tensor, "_ K A"]],
    settings: StepSettings,
) -> StepReport:
    """Train all models on a batch: two backward passes that meet in the prompt, then the refiner's own.

    Nothing moves before all gradients of all processes are known to be finite; then everything does.

    Args:
        batch: partitioned over the processes.
        models: the same on each of them.
        engines: of Qwen, the grid modules and the refiner.
        noise: the refiner's draws for each query of each pass; the agent learns under the first.
        settings: of this step.

    Returns:
        The same on all processes. If a loss, reward or gradient of any of them is not finite, the step is skipped:
        `finite` is False, and no parameter, statistic, memory or kept prompt has changed.
    """
    # Every process keeps the prompts of whole batches, so that all of them decide alike without asking.
    qwen_idle = models.prompts.holds_all(batch.ids, settings.number)
    passes = [
        _run_pass(batch, index, models, engines, draws, settings, qwen_idle=qwen_idle)
        for index, draws in enumerate(noise)
    ]
    # The one all-reduce of a step: sums over its passes and over all processes.
    sums = {name: [getattr(each.sums, name) for each in passes] for name in Sums._fields}
    totals = Sums(**all_reduce_sum({name: torch.stack(values).sum(0) for name, values in sums.items()}))
    rewards = RewardTotals(totals.rewarded, totals.reward, totals.squared_reward, totals.squared_residual)
    weights = settings.config.reward

    for each in passes:
        advantage, weight = each.sampled.of_queries(rewards.advantages(each.reward), each.weight)
        by_reward = policy_gradient(each.score, advantage, weight, weights.reward_weight).sum(1)
        # Both are times the loss scale, as the engine's backward pass expects.
        gradient = each.energy_gradient + engines.precision.loss_scale * by_reward
        by_writing = engines.precision.loss_scale * settings.config.qwen.lm_weight * each.weight
        each.reading.backward(engines.qwen, gradient, by_writing, is_last=each.is_last)
        with region("refiner"):
            # The agent learns under the first draw alone.
            in_refined = torch.zeros_like(each.score)
            in_refined[:, 0] = each.energy_gradient / engines.precision.loss_scale
            losses = models.refiner.rl_loss(
                each.transition,
                advantage.flatten(),
                query_weight=weight.flatten(),
                loss_gradient=in_refined.flatten(0, 1),
            )
            engines.refiner.backward(losses["total"], is_last=each.is_last)

    report = _report(batch, totals, rewards, passes[0].metrics, engines.gradient_norms(qwen_idle=qwen_idle), weights)
    if not report.finite:
        engines.skip(qwen_idle=qwen_idle)
        return report

    engines.step(qwen_idle=qwen_idle)
    with region("optimizer"):
        models.averaged_agent.update()
    models.efe.observe(totals.target_colors)
    with region("solver"):
        admitted = [process.admitted for process in report.signals]
        if any(admitted):
            packed = torch.cat([each.solved.packed(models.solver.memory.max_grid_size) for each in passes])
            models.solver.remember_packed(gather_rows(packed, admitted), batch.ids, settings.number)
    if not qwen_idle:
        keep_prompts(models, batch, [each.reading for each in passes], settings.number)
    return report


class Sums(NamedTuple):
    """Sums over a pass, then over the batch: all that a step exchanges before it moves a parameter."""

    views: Float[Tensor, ""]
    energy: Float[Tensor, ""]
    rewarded: Float[Tensor, ""]
    """Views that have a reward."""
    reward: Float[Tensor, ""]
    squared_reward: Float[Tensor, ""]
    squared_residual: Float[Tensor, ""]
    tokens: Float[Tensor, ""]
    lm_loss: Float[Tensor, ""]
    written: Float[Tensor, ""]
    gains: Float[Tensor, " G"]
    """What the rewards are made of."""
    metrics: Float[Tensor, " M"]
    target_colors: Float[Tensor, " C"]
    signals: Float[Tensor, "W 6"]
    """`Signals` of each process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What is left of a pass once the grid modules have their gradients."""

    is_last: bool
    """Of the step's passes."""
    reading: PromptReading
    energy_gradient: Float[Tensor, "N P"]
    """Derivative of the energy in the prompt, times the loss scale."""
    weight: Float[Tensor, " N"]
    """Of each query in the step's means: 1 / queries, or 0 for padding."""
    score: Float[Tensor, "N K P"]
    """Derivative of each draw's log-probability in the prompt."""
    transition: Transition
    """Of all draws, those of the first query first."""
    sampled: "SampledViews"
    reward: Float[Tensor, "K r"]
    solved: SolvedQueries
    metrics: tuple[str, ...]
    """Names of `sums.metrics`."""
    sums: Sums


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledViews:
    """The views of a pass that are planned backwards, and those of them that are rewarded."""

    backward: Int[Tensor, " R"]
    """Rows of the views that are planned backwards."""
    rewarded: Int[Tensor, " r"]
    """Rows of the views that are rewarded."""
    rewarded_in_backward: Int[Tensor, " r"]
    """Their places among those planned backwards."""
    views: int
    """Views of each query."""
    rewarded_share: float
    """Of all views."""

    def of_queries(
        self, values: Float[Tensor, "K r"], weight: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
        """Each draw's mean over the rewarded views of its query, 0 without any, and its weight in a mean over all.

        `weight` is that of each query if all its views are rewarded; its draws share it.
        """
        draws = len(values)
        of_views = values.new_zeros(draws + 1, len(weight) * self.views)
        of_views = of_views.index_copy(1, self.rewarded, torch.cat([values, torch.ones_like(values[:1])]))
        total, count = of_views.unflatten(1, (-1, self.views)).sum(2).T.split([draws, 1], dim=1)
        weight = weight[:, None] * count / (self.views * self.rewarded_share) / draws
        return total / count.clamp_min(1.0), weight.expand(-1, draws)


def sample_views(share: Share, views: int, config: Config, step: int, device: torch.device) -> SampledViews:
    """Sample the views that are planned backwards, `agent.backward_share` of all, and rewarded, `rewarded_share`.

    Every so many one of the batch, from a start that moves with the step by an irrational number: each view is sampled
    as often as any other, and processes and passes that share a batch make no difference.
    """
    backward_share, rewarded_share = config.agent.backward_share, config.refiner.rewarded_share
    in_batch = [place * views + view for place in share.positions for view in range(views)]
    backward: list[int] = []
    rewarded: list[int] = []
    rewarded_in_backward: list[int] = []
    for row, place in enumerate(in_batch):
        number = _number_in_sample(place, backward_share, start=step * 0.6180339887498949 % 1.0)
        if number is None:
            continue
        fraction = rewarded_share / backward_share
        if _number_in_sample(number, fraction, start=step * 0.7548776662466927 % 1.0) is not None:
            rewarded.append(row)
            rewarded_in_backward.append(len(backward))
        backward.append(row)

    def on_device(rows: list[int]) -> Int[Tensor, " _"]:
        # From page-locked memory, so that the host does not wait for the step before.
        pinned = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        return pinned.to(device, non_blocking=True)

    return SampledViews(
        backward=on_device(backward),
        rewarded=on_device(rewarded),
        rewarded_in_backward=on_device(rewarded_in_backward),
        views=views,
        rewarded_share=rewarded_share,
    )


def _number_in_sample(place: int, fraction: float, start: float) -> int | None:
    """The number that an item has in a systematic sample of this fraction; None if it is not in it."""
    number = math.floor(place * fraction + start)
    return number if fraction == 1.0 or number > math.floor((place - 1) * fraction + start) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardPass:
    """What the models make of the queries of a pass."""

    queries: QueryBatch
    reading: PromptReading
    sampled: SampledViews
    tried: AgentOutput
    """Of the rewarded views, K times: under the prompt as Qwen gave it, then refined by the second draw to the last;
    without a graph."""
    drawn_from: Float[Tensor, "N K P"]
    """The prompts, each as often as the policy drew from it."""
    refinement: RefinedPrompt
    """Of all draws, those of the first query first."""
    refined: Float[Tensor, "N P"]
    """By the first draw."""
    after: AgentOutput
    """Under it."""
    proposal: Proposal
    """The solver's."""
    final_logits: Float[Tensor, "B H W C"]
    """The agent's, weighed with the solver's proposal; trains the solver alone."""


def _run_pass(
    batch: DistributedBatch,
    index: int,
    models: Models,
    engines: Engines,
    noise: Float[Tensor, "N K A"],
    settings: StepSettings,
    *,
    qwen_idle: bool,
) -> Pass:
    """Answer the queries of a pass, score the answers, and give the grid modules their gradients."""
    queries, share = batch.queries[index], batch.shares[index]
    views, device = queries.inputs.views, queries.inputs.query.device
    is_last = index + 1 == len(batch.shares)
    sampled = sample_views(share, views, settings.config, settings.number, device)
    # Of several passes, the graphs would have to wait for the rewards of the last: Qwen reads twice then.
    keep_graph = len(batch.shares) == 1
    forward = _forward(models, engines, queries, noise, sampled, settings, keep_graph=keep_graph, qwen_idle=qwen_idle)
    prompt = forward.reading.prompt
    target, mask = canvas_target(queries.targets, forward.after)
    with region("scores and rewards"):
        scores, rewards = _scores(forward, settings)
    with region("EFE and other losses"):
        energy, losses = _energy(forward, models, target, mask, scores, settings)

    weights = settings.config.reward
    counted = torch.full_like(energy, 0.0 if share.is_padding else 1.0)
    query_weight = counted[::views] / len(batch)

    def total(values: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        return (counted * values.detach()).sum()

    with region("grid backward (agent, EFE, solver)"):
        # The mean reward is a constant to autograd: what it adds to the gradient is `policy_gradient`.
        loss = combined_loss(
            query_mean(energy, counted / (len(batch) * views)),
            energy.new_zeros(()),
            weights.efe_weight,
            weights.reward_weight,
        )
        engines.grid.backward(loss, is_last=is_last)
    with region("refiner"):
        (score,) = torch.autograd.grad(forward.refinement.log_prob.sum(), forward.drawn_from)

    metrics = {  # Logged as means over the views, by these names.
        **losses,
        "train/exact": scores.exact.float(),
        "train/cell": scores.cell,
        "mask_ratio": 1.0 - scores.cell,
        "solver/confidence": forward.proposal.confidence_logit.sigmoid(),
    }
    admitted = admits(scores.cell, settings.memory_threshold) & (counted > 0)
    draws = noise.shape[1]
    of_rewarded = counted[sampled.rewarded].repeat(draws) / draws
    reward = rewards.reward.unflatten(0, (draws, -1))
    total_energy, squared_reward = total(energy), (of_rewarded * rewards.reward.square()).sum()
    written = torch.zeros(0, device=energy.device) if forward.reading.lm_loss is None else forward.reading.lm_loss
    if share.is_padding or not forward.reading.counts:
        written = written[:0]
    broken = ~(total_energy + squared_reward + written.sum()).isfinite()
    return Pass(
        is_last=is_last,
        reading=forward.reading,
        energy_gradient=torch.zeros_like(prompt) if prompt.grad is None else prompt.grad,
        weight=query_weight,
        score=score,
        transition=forward.refinement.transition,
        sampled=sampled,
        reward=reward,
        solved=SolvedQueries(
            admitted=admitted,
            positions=tuple(place for place in share.positions for _ in range(views)),
            features=queries.inputs.of_views(prompt.detach()),
            queries=queries.inputs.query,
            outcomes=target,
            exact=scores.exact,
        ),
        metrics=tuple(metrics),
        sums=Sums(
            views=counted.sum(),
            energy=total_energy,
            rewarded=of_rewarded.sum(),
            reward=(of_rewarded * rewards.reward).sum(),
            squared_reward=squared_reward,
            squared_residual=(of_rewarded * residuals(reward).square().flatten()).sum(),
            tokens=(counted[::views] * queries.inputs.token_mask.sum(1)).sum(),
            lm_loss=written.sum(),
            written=energy.new_tensor(float(len(written))),
            gains=(of_rewarded * torch.stack([getattr(rewards, name) for name in GAINS])).sum(1),
            metrics=torch.stack([total(values) for values in metrics.values()]),
            target_colors=(counted[:, None] * color_shares(target, mask)).sum(0),
            signals=_signals(batch, settings, broken, admitted.sum(), is_last=is_last),
        ),
    )


def _forward(
    models: Models,
    engines: Engines,
    queries: QueryBatch,
    noise: Float[Tensor, "N K A"],
    sampled: SampledViews,
    settings: StepSettings,
    *,
    keep_graph: bool,
    qwen_idle: bool,
) -> ForwardPass:
    """The forward pass: Qwen's prompt, its refinements, the agent's answer to it and to each of them."""
    inputs, draws = queries.inputs, noise.shape[1]
    with engines.autocast():
        reading = read_prompts(
            models,
            engines.qwen,
            queries,
            settings.number,
            seed=settings.config.train.seed,
            keep_graph=keep_graph,
            others_read=not qwen_idle,
        )
        with region("refiner"):
            of_draws = [
                each[:, None].expand(-1, draws, -1) for each in (reading.prompt, reading.control, inputs.summary)
            ]
            refinement = models.refiner.refine_prompt(
                *(each.flatten(0, 1) for each in of_draws), noise=noise.flatten(0, 1)
            )
            refined = refinement.refined.unflatten(0, (-1, draws))  # [N, K, P]
        with region("agent"):
            context = models.agent.read_context(inputs)
            with torch.no_grad():
                prompts = torch.cat([reading.prompt[:, None], refined[:, 1:]], dim=1)
                of_rewarded = inputs.of_views(prompts)[sampled.rewarded].transpose(0, 1)  # [K, r, P]
                rows = sampled.rewarded.repeat(draws)
                some = None if context is None else context.take(rows)
                tried = models.agent(inputs.take(rows), of_rewarded.flatten(0, 1), some)
            after = models.agent(inputs, inputs.of_views(refined[:, 0]), context, backward=sampled.backward)
        with region("solver"):
            proposal = models.solver(inputs.of_views(reading.prompt.detach()), inputs, queries.ids_of_views)
    return ForwardPass(
        queries=queries,
        reading=reading,
        sampled=sampled,
        tried=tried,
        drawn_from=of_draws[0],
        refinement=refinement,
        refined=refined[:, 0],
        after=after,
        proposal=proposal,
        # The solver learns beside the agent, not in its place: were their mixture the agent's own answer, the agent
        # would leave to the memory what it could learn itself.
        final_logits=proposal.weigh(after.final_logits.detach()),
    )


def _scores(forward: ForwardPass, settings: StepSettings) -> tuple[Grades, Rewards]:
    """How right the answers are, and how much each draw of the refinement has gained."""
    inputs, targets, sampled = forward.queries.inputs, forward.queries.targets, forward.sampled
    scores = grade(answer(forward.after.ahead, inputs, targets, forward.final_logits), targets)
    learned = forward.after.take(sampled.rewarded, sampled.rewarded_in_backward)
    first = answer(learned, inputs.take(sampled.rewarded), targets.take(sampled.rewarded))
    draws = forward.drawn_from.shape[1]
    rows = sampled.rewarded.repeat(draws)
    inputs, targets = inputs.take(rows), targets.take(rows)
    before, *others = answer(forward.tried, inputs, targets).split(draws)
    rewards = shaping_reward(
        Answer.joined([before] * draws),
        Answer.joined([first, *others]),
        targets.target,
        inputs.query,
        settings.config.reward.reward_scale,
    )
    return scores, rewards


def _energy(
    forward: ForwardPass,
    models: Models,
    target: Int[Tensor, "B H W"],
    mask: Bool[Tensor, "B H W"],
    scores: Grades,
    settings: StepSettings,
) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
    """What the grid modules minimise for each query, and the losses that it is made of, by their names in the log."""
    after, inputs, sampled = forward.after, forward.queries.inputs, forward.sampled
    backward_share = models.agent.backward_share
    terms = models.efe.per_query(
        forward_logits=after.forward_logits,
        backward_logits=after.backward_logits,
        state_logits=after.state_logits,
        obs_probs=after.obs_probs,
        final_logits=after.final_logits,
        target=target,
        prompt_embedding=inputs.of_views(forward.refined),
        grid_mask=mask,
        halting=after.halting,
        backward=sampled.backward,
        backward_share=backward_share,
    )
    height_logits, width_logits = after.size_logits.unbind(1)
    size = size_loss((height_logits, width_logits), forward.queries.targets.target_size)
    solver = consistency(forward.final_logits, target, mask)
    query = inputs.query[sampled.backward]
    way_back = consistency(after.reconstruction_logits, query, query >= 0)
    reversibility = of_some(way_back, sampled.backward, len(inputs.query), backward_share)
    energy = (
        hard_cell_weight(1.0 - scores.cell) * terms["total"]
        + settings.size_weight * size
        + solver
        + settings.config.efe.reversibility_weight * reversibility
    )
    losses = {f"efe/{name}": values for name, values in terms.items()}
    return energy, losses | {"size_loss": size, "solver_loss": solver, "reversibility_loss": reversibility}


def _signals(
    batch: DistributedBatch,
    settings: StepSettings,
    broken: Bool[Tensor, ""],
    admitted: Int[Tensor, ""],
    *,
    is_last: bool,
) -> Float[Tensor, "W 6"]:
    """This process's signals in its own row, so that the sum over processes has those of each."""
    signals = torch.zeros(len(batch.partition.shares), len(Signals._fields), device=broken.device)
    # What is summed over the passes of a step, too, has the time once.
    seconds = settings.seconds if is_last else 0.0
    asked = signals.new_tensor([settings.stop, settings.preempted, settings.save_failed, seconds])
    signals[batch.process] = torch.cat([asked, torch.stack([broken, admitted])])
    return signals


def _report(
    batch: DistributedBatch,
    totals: Sums,
    rewards: RewardTotals,
    metrics: Sequence[str],
    norms: Mapping[str, Float[Tensor, ""]],
    weights: RewardConfig,
) -> StepReport:
    """Read the step's numbers in one transfer to the host, where a step waits for the device anyway."""
    energy = totals.energy / totals.views
    means = {
        "loss": combined_loss(energy, rewards.mean, weights.efe_weight, weights.reward_weight),
        **dict(zip(metrics, totals.metrics / totals.views, strict=True)),
        **dict(zip(GAINS.values(), totals.gains / totals.rewarded.clamp_min(1.0), strict=True)),
        "reward/mean": rewards.mean,
        "reward/std": rewards.variance.sqrt(),
        "lm_loss": totals.lm_loss / totals.written.clamp_min(1.0),
    }
    counts = (totals.tokens, totals.written, totals.views, totals.rewarded)
    scalars = torch.stack([value.float() for value in (*means.values(), *norms.values(), *counts)])
    with region("results to the host"):
        host = torch.cat([scalars, totals.signals.flatten()]).tolist()
    numbers = iter(host)
    host_means, host_norms = ({name: next(numbers) for name in named} for named in (means, norms))
    tokens, written, views, rewarded = (round(next(numbers)) for _ in counts)
    if not written:
        del host_means["lm_loss"]
    return StepReport(
        metrics=host_means | {"imbalance": batch.partition.imbalance},
        group_norms=host_norms,
        queries=views,
        tokens=tokens,
        written=written,
        rewarded=rewarded,
        finite=all(map(math.isfinite, (host_means["loss"], *host_norms.values()))),
        # The numbers that are left, six for each process.
        signals=tuple(
            Signals(stop > 0, preempted > 0, save_failed > 0, seconds, broken > 0, round(admitted))
            for stop, preempted, save_failed, seconds, broken, admitted in zip(
                *[numbers] * len(Signals._fields), strict=True
            )
        ),
    )


def admits(accuracy: Float[Tensor, " B"], threshold: float) -> Bool[Tensor, " B"]:
    """Which queries enter the solver's memory, by their cell accuracy (0 to 1).

    An exact grid always does: the threshold, a multiple of a mean, may be above 1.
    """
    return (accuracy > threshold) | (accuracy >= 1.0)
