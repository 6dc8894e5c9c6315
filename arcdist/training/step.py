"""One training step, whole and in its order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from arcdist.config import RewardConfig
from arcdist.data.batch import DistributedBatch
from arcdist.distributed.collectives import all_reduce_sum, gather_rows
from arcdist.engine import Engines
from arcdist.evaluation import answer, canvas_target, fit_canvas, grade
from arcdist.losses import (
    cell_mean,
    color_shares,
    combined_loss,
    consistency,
    hard_cell_weight,
    policy_gradient,
    query_mean,
    size_loss,
)
from arcdist.models import AgentOutput, PermanentSolver
from arcdist.regions import region
from arcdist.rl import RewardTotals, Transition, advantages, shaping_reward
from arcdist.training.models import Models
from arcdist.training.prompts import Reading, keep_prompts, read_prompts

# B queries.


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeWarmupCurriculum:
    """Lowers the weight of the size loss linearly: cells can only be right once the grid has its size."""

    start: float = 1.0
    end: float = 0.5
    epochs: int = 3
    """Length of the warm-up; 0 gives `end` from the beginning."""

    def weight(self, epoch: float | int) -> float:
        """Weight at `epoch`, counted from 0 and fractional within an epoch.

        w(e) = start + (end - start) * min(e / epochs, 1)
        """
        if epoch >= self.epochs:
            return self.end
        return self.start + (self.end - self.start) * epoch / self.epochs


class DynamicMemoryThreshold:
    """Gates the solver's memory by how well the run does at present.

    average <- (1 - alpha) average + alpha accuracy, beginning at `start`.
    """

    def __init__(self, start: float = 0.2, alpha: float = 0.1, gate: float = 1.1) -> None:
        self.alpha = alpha
        self.gate = gate
        self._average = start

    @property
    def threshold(self) -> float:
        """Cell accuracy that a query must exceed: `gate` times the average. Above 1 only exact grids enter."""
        return self.gate * self._average

    def admits(self, accuracy: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Which queries enter the memory, by their cell accuracy (0 to 1).

        An exact grid always enters: once the average passes 1 / gate, the threshold lies out of anyone's reach.
        """
        return (accuracy > self.threshold) | (accuracy >= 1.0)

    def update(self, accuracy: float) -> None:
        """Move the average towards a batch's mean cell accuracy (0 to 1)."""
        self._average += self.alpha * (accuracy - self._average)

    def state(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"average": self._average}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from `state()` of another run."""
        self._average = state["average"]


# B queries of a pass, n solved by this process, N by all of them, H W canvas, G largest side, P prompt.


@dataclass(frozen=True, kw_only=True, slots=True)
class SolvedQueries:
    """The queries of a pass, and which of them are worth remembering."""

    admitted: Bool[Tensor, " B"]
    positions: tuple[int, ...]
    """Place of each in the batch."""
    features: Float[Tensor, "B P"]
    queries: Int[Tensor, "B H W"]
    outcomes: Int[Tensor, "B H W"]
    exact: Bool[Tensor, " B"]

    def packed(self, side: int) -> UInt8[Tensor, "n bytes"]:
        """What is admitted, a row of bytes each, its grids on a canvas of that side."""
        rows = self.admitted.nonzero().flatten()
        places = torch.tensor(self.positions, device=rows.device)[rows]
        grids = [fit_canvas(grid[rows], side, side).flatten(1).to(torch.int8) for grid in (self.queries, self.outcomes)]
        fields = (places[:, None], self.features[rows].float(), *grids, self.exact[rows, None])
        return torch.cat([field.contiguous().view(torch.uint8) for field in fields], dim=1)


def remember(
    solver: PermanentSolver, ids: Sequence[str], solved: Sequence[SolvedQueries], counts: Sequence[int], step: int
) -> None:
    """Put what all processes admitted into the memory of this one.

    Args:
        solver: owns the memory.
        ids: names of the batch's queries.
        solved: of each pass of this process.
        counts: queries that each process admitted.
        step: of the run.
    """
    if not any(counts):
        return
    side = solver.memory.max_grid_size
    rows = gather_rows(torch.cat([each.packed(side) for each in solved]), counts)
    width = 4 * solved[0].features.shape[1]
    place, features, queries, outcomes, exact = rows.split([8, width, side * side, side * side, 1], dim=1)
    places = place.flatten().view(torch.int64)
    order = places.argsort()
    solver.remember(
        ids=[ids[index] for index in places[order].tolist()],
        features=features.flatten().view(torch.float32).unflatten(0, (len(order), -1))[order],
        queries=_grids(queries, side)[order],
        outcomes=_grids(outcomes, side)[order],
        exact=exact.flatten().bool()[order],
        step=step,
    )


def _grids(values: UInt8[Tensor, "N cells"], side: int) -> Int[Tensor, "N G G"]:
    return values.view(torch.int8).unflatten(1, (side, side)).long()


# B queries of a pass, N queries of the batch on all processes, P prompt, A = P + 1 components of an action.


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
    seed: int
    stop: bool = False
    """This process was asked to stop; with this step all of them know, as they do of the next two."""
    preempted: bool = False
    """It was asked so because its machine is wanted for something else."""
    save_failed: bool = False
    """It could not write a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What a step did on all processes, on the host of each."""

    metrics: dict[str, float]
    """Means over the batch, by their names in `steps.jsonl`."""
    group_norms: dict[str, float]
    """Gradient norm of each parameter group, before clipping."""
    queries: int
    tokens: int
    """Real tokens of the batch."""
    finite: bool
    """False if the step was skipped: no parameter has moved."""
    not_finite_on: tuple[int, ...]
    """The processes whose own losses or rewards were not finite."""
    stop: bool
    """Some process was asked to stop."""
    preempted: bool
    """Some process was asked so because its machine is wanted for something else."""
    save_failed: bool
    """Some process could not write a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What is left of a pass once its answers are scored and the grid modules have their gradients."""

    reading: Reading
    weight: Float[Tensor, " B"]
    """Of each query in the step's means: 1 / N, or 0 for padding."""
    energy_gradient: Float[Tensor, "B P"]
    """Derivative of the energy in the prompt, times the loss scale."""
    score: Float[Tensor, "B P"]
    """Derivative of the refinement's log-probability in the prompt."""
    transition: Transition
    reward: Float[Tensor, " B"]
    solved: SolvedQueries
    sums: dict[str, Tensor]
    """What all processes add up: sums over the queries, numbers by process."""


def train_step(
    batch: DistributedBatch,
    models: Models,
    engines: Engines,
    noise: Sequence[Float[Tensor, "_ A"]],
    settings: StepSettings,
) -> StepReport:
    """Train all models on a batch: two backward passes that meet in the prompt, then the refiner's own.

    Nothing moves before all gradients of all processes are known to be finite; then everything does.

    Args:
        batch: dealt to the processes.
        models: the same on each of them.
        engines: of Qwen, the grid modules and the refiner.
        noise: the refiner's draws for the queries of each pass.
        settings: of this step.
    """
    passes = [_answer(batch, index, models, engines, draws, settings) for index, draws in enumerate(noise)]
    totals = all_reduce_sum({name: torch.stack([each.sums[name] for each in passes]).sum(0) for name in passes[0].sums})
    rewards = RewardTotals(totals["queries"], totals["reward"], totals["squared_reward"])

    for index, each in enumerate(passes):
        is_last = index + 1 == len(passes)
        advantage = advantages(each.reward, rewards.mean, rewards.variance)
        by_reward = policy_gradient(each.score, advantage, each.weight, settings.reward.reward_weight)
        gradient = each.energy_gradient + engines.precision.loss_scale * by_reward
        each.reading.backward(engines.qwen, gradient, is_last=is_last)
        with region("refiner"):
            losses = models.refiner.rl_loss(each.transition, advantage, query_weight=each.weight)
            engines.refiner.backward(losses["total"], is_last=is_last)

    norms = engines.gradient_norms()
    metrics = _means(totals, rewards, settings.reward)
    host = _to_host({**metrics, **norms, **{name: totals[name] for name in ("tokens", "news", "broken", "admitted")}})
    report = StepReport(
        metrics={name: host[name][0] for name in metrics} | {"imbalance": batch.partition.imbalance},
        group_norms={name: host[name][0] for name in norms},
        queries=len(batch),
        tokens=round(host["tokens"][0]),
        finite=all(math.isfinite(host[name][0]) for name in ("loss", *norms)),
        not_finite_on=tuple(process for process, broken in enumerate(host["broken"]) if broken),
        stop=host["news"][0] > 0,
        preempted=host["news"][1] > 0,
        save_failed=host["news"][2] > 0,
    )
    if not report.finite:
        engines.skip()
        return report

    engines.step()
    with region("optimizer"):
        models.averaged_agent.update()
    models.efe.observe(totals["target_colors"])
    admitted = [round(count) for count in host["admitted"]]
    with region("solver"):
        remember(models.solver, batch.ids, [each.solved for each in passes], admitted, settings.number)
    keep_prompts(models, batch, [each.reading for each in passes], settings.number)
    return report


def _answer(
    batch: DistributedBatch,
    index: int,
    models: Models,
    engines: Engines,
    noise: Float[Tensor, "B A"],
    settings: StepSettings,
) -> Answered:
    """Answer the queries of a pass, score the answers, and give the grid modules their gradients."""
    queries, share = batch.queries[index], batch.shares[index]
    inputs, targets = queries.inputs, queries.targets
    with engines.autocast():
        reading = read_prompts(
            models,
            engines.qwen,
            queries,
            settings.number,
            seed=settings.seed,
            keep_graph=len(batch.shares) == 1,
        )  # [B, P], [B, P]
        border = reading.prompt.requires_grad_()  # The one tensor that crosses between the engines.

        with region("agent"):
            context = models.agent.read_context(inputs)
            with torch.no_grad():
                before = models.agent(inputs, border, context)
        with region("refiner"):
            refinement = models.refiner.refine_prompt(border, reading.control, inputs.summary, noise=noise)
        with region("agent"):
            after = models.agent(inputs, refinement.refined, context)
        with region("solver"):
            proposal = models.solver(border.detach(), inputs, queries.ids)
    # The solver learns beside the agent, not in its place: were their mixture the agent's own answer, the agent would
    # leave to the memory what it could learn itself.
    final_logits = proposal.weigh(after.final_logits.detach())

    target, mask = canvas_target(targets, after)
    with region("scores and rewards"):
        scores = grade(answer(after, inputs, targets, final_logits), targets)
        rewards = shaping_reward(
            answer(before, inputs, targets),
            answer(after, inputs, targets),
            targets.target,
            inputs.query,
            settings.reward.reward_scale,
        )

    with region("EFE and other losses"):
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
        mask_ratio = 1.0 - scores.cell
        size = size_loss(after.size_logits.unbind(1), targets.target_size)
        solver = consistency(final_logits, target, mask)
        reversibility = _reversibility_loss(after, inputs.query)
        energy = (
            hard_cell_weight(mask_ratio) * terms["total"]
            + settings.size_weight * size
            + solver
            + REVERSIBILITY_WEIGHT * reversibility
        )
    counted = torch.full_like(rewards.reward, 0.0 if share.is_padding else 1.0)
    weight = counted / len(batch)
    with region("grid backward (agent, EFE, solver)"):
        engines.grid.backward(
            settings.reward.efe_weight * query_mean(energy, weight), is_last=index + 1 == len(batch.shares)
        )
    with region("refiner"):
        (score,) = torch.autograd.grad(refinement.log_prob.sum(), border)

    admitted = settings.memory_gate.admits(scores.cell) & (counted > 0)
    per_query = {
        "queries": torch.ones_like(counted),
        "reward": rewards.reward,
        "squared_reward": rewards.reward.square(),
        "energy": energy,
        **{f"efe/{name}": values for name, values in terms.items()},
        "size_loss": size,
        "solver_loss": solver,
        "reversibility_loss": reversibility,
        **{f"reward/{name}": getattr(rewards, name) for name in ("d_acc", "d_size", "d_color", "d_rev")},
        "train/exact": scores.exact.float(),
        "train/cell": scores.cell,
        "mask_ratio": mask_ratio,
        "solver/confidence": proposal.confidence_logit.sigmoid(),
        "tokens": inputs.token_mask.sum(1).float(),
    }
    sums = {name: (counted * values.detach()).sum() for name, values in per_query.items()}
    own = torch.zeros(len(batch.partition.shares), device=counted.device)
    own[batch.process] = 1.0
    return Answered(
        reading=reading,
        weight=weight,
        energy_gradient=torch.zeros_like(border) if border.grad is None else border.grad,
        score=score,
        transition=refinement.transition,
        reward=rewards.reward,
        solved=SolvedQueries(
            admitted=admitted,
            positions=share.positions,
            features=border.detach(),
            queries=inputs.query,
            outcomes=target,
            exact=scores.exact,
        ),
        sums={
            **sums,
            "target_colors": (counted[:, None] * color_shares(target, mask)).sum(0),
            "news": sums["queries"].new_tensor([settings.stop, settings.preempted, settings.save_failed]),
            "broken": own * ~(sums["energy"] + sums["squared_reward"]).isfinite(),
            "admitted": own * admitted.sum(),
        },
    )


def _means(totals: Mapping[str, Tensor], rewards: RewardTotals, reward: RewardConfig) -> dict[str, Float[Tensor, ""]]:
    """What is logged of a step, from the sums of all processes."""
    others = ("queries", "reward", "squared_reward", "energy", "tokens", "target_colors", "news", "broken", "admitted")
    mean_energy = totals["energy"] / rewards.queries
    return {
        "loss": combined_loss(mean_energy, rewards.mean, reward.efe_weight, reward.reward_weight),
        **{name: total / rewards.queries for name, total in totals.items() if name not in others},
        "reward/mean": rewards.mean,
        "reward/std": rewards.variance.sqrt(),
    }


def _reversibility_loss(output: AgentOutput, query: Tensor) -> Float[Tensor, " B"]:
    """Cross-entropy of the way back with the query's input, a mean over its cells."""
    surprise = -output.reconstruction_logits.gather(-1, query.clamp_min(0)[..., None])[..., 0]
    return cell_mean(surprise, query >= 0)


def _to_host(named: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Read tensors in one transfer, where a step waits for the device anyway."""
    with region("results to the host"):
        values = torch.cat([value.detach().float().reshape(-1) for value in named.values()]).tolist()
    ends = torch.tensor([value.numel() for value in named.values()]).cumsum(0).tolist()
    return {name: values[end - value.numel() : end] for (name, value), end in zip(named.items(), ends, strict=True)}
