"""Candidates: the grids that the parts of the system propose for a query, seen from several sides."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arcdist.data import Augmentation, Collator, Grid, Query, QueryBatch, draw_augmentation
from arcdist.evaluation.answers import answer, likeliest
from arcdist.evaluation.consensus import Consensus, ViewPrediction
from arcdist.models import (
    ARCPromptGuidedAgent,
    PermanentSolver,
    Plan,
    PromptOutput,
    Proposal,
    QwenHybridPrompt,
    cells_within,
)
from arcdist.models.cores import Context
from arcdist.rl import PolicyRefinedAgent, shaping_reward
from arcdist.rng import stream

# B views of queries, K draws of the policy, P prompt, A = P + 1 components of an action, H W canvas,
# C colours, T planning steps.

GridTuple: TypeAlias = tuple[tuple[int, ...], ...]
"""A grid that can be compared and counted."""


def grid_tuple(grid: Grid) -> GridTuple:
    """An array as nested tuples."""
    return tuple(map(tuple, grid.tolist()))


Origin = Literal[
    "agent",
    "steps",
    "consensus",
    "unadapted",
    "memory",
    "refiner",
    "demonstrations",
    "qwen",
    "agent_score",
    "qwen_score",
]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
"""Who proposes grids: the agent as in validation, its earlier planning steps, all its views together, the agent before
test-time training, the memory alone, refinements that the policy draws, the one of these that does best on the task's
own demonstrations, and Qwen, which writes them. Scores propose nothing: they say how probable the agent, or Qwen, finds
each of the others' grids."""
SCORES: tuple[Origin, ...] = ("agent_score", "qwen_score")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A grid that was proposed for a query."""

    grid: GridTuple
    origin: Origin
    view: int
    """Number of the view that it was proposed for; 0 if it comes from all of them, as scores do."""
    log_prob: float
    """Of its size and colours, in nats, as whoever proposed it puts it: the consensus as the mean of all views, a score
    as their sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What the models make of a batch of queries; the answer of a validation is `logits` within the likeliest size."""

    prompt: PromptOutput
    context: Context | None
    plan: Plan
    """Under the refined prompt."""
    proposal: Proposal
    """Of the memory."""
    logits: Float[Tensor, "B H W C"]
    """The last planning step, with the memory's share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """The models that answer a query, as evaluation uses them."""

    read: Callable[[Tensor, Tensor, Tensor], PromptOutput]
    """Calls `qwen`, through its engine if it has one."""
    qwen: QwenHybridPrompt
    agent: ARCPromptGuidedAgent
    solver: PermanentSolver
    refiner: PolicyRefinedAgent

    def respond(self, batch: QueryBatch) -> Response:
        """Read and refine the prompts (the policy's mean), plan, and look into the memory."""
        inputs = batch.inputs
        prompt = PromptOutput(*self.read(inputs.tokens, inputs.token_mask, inputs.features))
        context = self.agent.read_context(inputs)
        plan = self.agent.plan_until_stopped(inputs, self.refined(prompt, batch), context)
        proposal = self.solver(inputs.of_views(prompt.prompt), inputs, batch.ids_of_views)
        return Response(
            prompt=prompt,
            context=context,
            plan=plan,
            proposal=proposal,
            logits=proposal.weigh(plan.final_logits),
        )

    def refined(
        self, prompt: PromptOutput, batch: QueryBatch, noise: Float[Tensor, " A"] | None = None
    ) -> Float[Tensor, "B P"]:
        """The prompt of each view as the policy edits it: by its mean, or by one draw for all."""
        refinement = self.refiner.refine_prompt(
            *prompt,
            batch.inputs.summary,
            noise=None if noise is None else noise.expand(len(batch), -1),
            deterministic=noise is None,
        )
        return batch.inputs.of_views(refinement.refined)


def views(count: int, task_id: str, seed: int = 0) -> list[Augmentation]:
    """So many ways to see a task: as it is, then its symmetries in turn, under permuted colours from the ninth on.

    A run and its resumption, and every process, see a task alike.
    """
    seen = []
    for number in range(count):
        rng = stream(seed, "views", number, task_id)
        colors = draw_augmentation(rng, dihedral=False, colors=number >= 8, order=False, num_pairs=0).colors
        seen.append(Augmentation(dihedral=number % 8, colors=colors, order=()))
    return seen


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposing:
    """Which candidates are proposed."""

    views: int = 1
    draws: int = 0
    """Refinements that are drawn from the policy, K."""
    steps: bool = False
    """Whether earlier planning steps propose."""
    consensus: bool = False
    """Whether the agent's views propose a grid together, and score those of all."""
    memory: bool = False
    """Whether the memory alone proposes."""
    qwen: bool = False
    """Whether Qwen writes grids and scores those of the others; it has to have a trained LM head."""
    batch_size: int = 32
    """Views that are answered at once."""
    seed: int = 0
    tell_symmetry: bool = True
    """Whether the models have learned symmetries, and are told of them."""


@torch.no_grad()
def propose(
    models: Predictor,
    collator: Collator,
    queries: Sequence[Query],
    demonstrations: Sequence[Query],
    settings: Proposing,
    device: torch.device,
    before: Sequence[Sequence[Candidate]] = (),
) -> list[list[Candidate]]:
    """The candidates for each query of one task, those of the first view first.

    Args:
        models: in evaluation mode.
        collator: of queries without augmentation.
        queries: of one task.
        demonstrations: the same task's demonstrations, each held out in turn; they choose among the draws.
        settings: which candidates.
        device: of the models.
        before: candidates that there are already for each query, to be scored with the others; none by default.
    """
    task_id = queries[0].task_id
    noise = _draws(settings, models, task_id, device)
    best = _best_draw(models, collator, demonstrations, noise, settings, device)
    candidates: list[list[Candidate]] = [[] for _ in queries]
    predictions: list[list[ViewPrediction]] = [[] for _ in queries]

    def add(seen: Sequence[Seen], origin: Origin, proposed: Proposed) -> None:
        for (place, number, view), (grid, log_prob) in zip(seen, proposed, strict=True):
            candidates[place].append(Candidate(grid_tuple(view.invert(grid)), origin, number, log_prob))

    for seen, batch in _seen(collator, queries, settings, device):
        response = models.respond(batch)
        for origin, proposed in _proposals(models, batch, response, settings, noise, best):
            add(seen, origin, proposed)
        if settings.consensus:
            for (place, _, view), (colors, sides) in zip(seen, _log_probs(batch, response), strict=True):
                predictions[place].append(ViewPrediction(view, colors, sides))
    for of_query, known in zip(candidates, before, strict=bool(before)):
        of_query.extend(known)
    together = [Consensus(of_query) for of_query in predictions if of_query]
    for of_query, views, consensus in zip(candidates, predictions, together, strict=settings.consensus):
        agreed = consensus.likeliest()
        of_query.append(Candidate(grid_tuple(agreed), "consensus", 0, consensus.log_prob(agreed) / len(views)))
    if settings.qwen:
        # It writes the forms that it has learned to read.
        written_in = settings if collator.reads_views else replace(settings, views=1)
        for seen, batch in _seen(collator, queries, written_in, device):
            written = models.qwen.writer().greedy(batch.inputs.tokens, batch.inputs.token_mask)
            add(seen, "qwen", [(each.grid, each.log_prob) for each in written])
        scores = _qwen_scores(models, collator, queries, candidates, written_in, device)
        candidates = [of_query + scored for of_query, scored in zip(candidates, scores, strict=True)]
    candidates = [_by_view(of_query) for of_query in candidates]
    for of_query, consensus in zip(candidates, together, strict=settings.consensus):
        of_query.extend(_agent_scores(of_query, consensus))
    return [_by_view(of_query) for of_query in candidates]


def _by_view(candidates: Sequence[Candidate]) -> list[Candidate]:
    # Those of a view stay in the order of the parts, whatever was answered at once.
    return sorted(candidates, key=lambda candidate: candidate.view)


Seen: TypeAlias = tuple[int, int, Augmentation]
"""The place of a query, the number of a view, and the view."""


def _seen(
    collator: Collator, queries: Sequence[Query], settings: Proposing, device: torch.device
) -> Iterator[tuple[list[Seen], QueryBatch]]:
    """All views of all queries, `settings.batch_size` of them at a time."""
    of_task = list(enumerate(views(settings.views, queries[0].task_id, settings.seed)))
    for first in range(0, len(queries), settings.batch_size):
        group = list(enumerate(queries))[first : first + settings.batch_size]
        at_once = max(1, settings.batch_size // len(group))
        for start in range(0, len(of_task), at_once):
            seen = [
                (place, number, replace(view, order=tuple(range(len(query.context)))))
                for place, query in group
                for number, view in of_task[start : start + at_once]
            ]
            read = [queries[place] for place, _, _ in seen] if collator.reads_views else [query for _, query in group]
            batch = collator.collate(read, [view for _, _, view in seen], tell_symmetry=settings.tell_symmetry)
            yield seen, batch.to(device)


def _log_probs(
    batch: QueryBatch, response: Response
) -> list[tuple[Float[np.ndarray, "_ _ C"], Float[np.ndarray, "2 G"]]]:
    """What each view says of its colours, within its working area, and of its sides."""
    colors = response.logits.float().log_softmax(-1).cpu().numpy()
    sides = response.plan.size_logits.float().cpu().numpy()
    areas = batch.inputs.working_area.tolist()
    return [
        (of_view[:height, :width], side) for of_view, side, (height, width) in zip(colors, sides, areas, strict=True)
    ]


def _agent_scores(candidates: Sequence[Candidate], consensus: Consensus) -> list[Candidate]:
    """How probable the agent finds each grid that was proposed and fits, over all views: a product of experts."""
    grids = dict.fromkeys(candidate.grid for candidate in candidates)
    scores = ((grid, consensus.log_prob(np.array(grid, np.uint8))) for grid in grids)
    return [Candidate(grid, "agent_score", 0, score) for grid, score in scores if score > -np.inf]


def _qwen_scores(
    models: Predictor,
    collator: Collator,
    queries: Sequence[Query],
    candidates: Sequence[Sequence[Candidate]],
    settings: Proposing,
    device: torch.device,
) -> list[list[Candidate]]:
    """How probable Qwen finds each grid that was proposed, over all views: a product of experts."""
    writer = models.qwen.writer()
    grids = [list(dict.fromkeys(candidate.grid for candidate in of_query)) for of_query in candidates]
    totals = [dict.fromkeys(of_query, 0.0) for of_query in grids]
    for seen, batch in _seen(collator, queries, settings, device):
        asked = [[view.apply(np.array(grid, np.uint8)) for grid in grids[place]] for place, _, view in seen]
        log_probs = writer.log_prob(batch.inputs.tokens, batch.inputs.token_mask, asked)
        for (place, _, _), of_view in zip(seen, log_probs, strict=True):
            for grid, log_prob in zip(grids[place], of_view, strict=True):
                totals[place][grid] += log_prob
    return [[Candidate(grid, "qwen_score", 0, total) for grid, total in of_query.items()] for of_query in totals]


Proposed: TypeAlias = list[tuple[np.ndarray, float]]
"""A grid for each query of a batch, as it is seen, with its log-probability."""


def _proposals(
    models: Predictor,
    batch: QueryBatch,
    response: Response,
    settings: Proposing,
    noise: list[Tensor],
    best: int | None,
) -> list[tuple[Origin, Proposed]]:
    """What is proposed for a batch, by whom."""
    plan = response.plan
    kinds: list[Origin] = ["agent"]
    logits, sizes = [response.logits], [plan.size_logits]
    if settings.steps:
        for step in plan.forward_logits[:-1].flip(0):
            kinds.append("steps")
            logits.append(step)
            sizes.append(plan.size_logits)
    if settings.memory:
        kinds.append("memory")
        logits.append(response.proposal.candidate)
        sizes.append(plan.size_logits)
    for number, draw in enumerate(noise):
        refined = models.refined(response.prompt, batch, draw)
        drawn = models.agent.plan_until_stopped(batch.inputs, refined, response.context)
        kinds.append("refiner" if number != best else "demonstrations")
        logits.append(response.proposal.weigh(drawn.final_logits))
        sizes.append(drawn.size_logits)
    return list(zip(kinds, _grids(torch.stack(logits), torch.stack(sizes), batch), strict=True))


def _grids(
    logits: Float[Tensor, "N B H W C"], size_logits: Float[Tensor, "N B 2 G"], batch: QueryBatch
) -> list[Proposed]:
    """The likeliest grids of N answers to each query."""
    answers, height, width = len(logits), *logits.shape[2:4]
    logits, size_logits = logits.flatten(0, 1), size_logits.flatten(0, 1)  # [N B, ...]
    colors, size = likeliest(logits, size_logits, batch.inputs.working_area.repeat(answers, 1))
    of_size = size_logits.gather(-1, size[..., None] - 1).squeeze(-1).sum(-1)
    surest = logits.float().log_softmax(-1).amax(-1)
    log_prob = of_size + (surest * cells_within(size, height, width)).flatten(1).sum(-1)
    packed = torch.cat([log_prob[:, None], size.float(), colors.flatten(1).float()], -1)
    return [
        [
            (row[3:].reshape(height, width)[: int(row[1]), : int(row[2])].astype(np.uint8), float(row[0]))
            for row in answer
        ]
        for answer in packed.unflatten(0, (answers, -1)).cpu().numpy()
    ]


def _draws(settings: Proposing, models: Predictor, task_id: str, device: torch.device) -> list[Float[Tensor, " A"]]:
    """Standard normal draws, which depend on the task and the seed alone."""
    width = models.refiner.mean_head.out_features
    rng = stream(settings.seed, "draws", 0, task_id)
    noise = rng.standard_normal((settings.draws, width)).astype(np.float32)
    return list(torch.from_numpy(noise).to(device))


def _best_draw(
    models: Predictor,
    collator: Collator,
    demonstrations: Sequence[Query],
    noise: Sequence[Float[Tensor, " A"]],
    settings: Proposing,
    device: torch.device,
) -> int | None:
    """The draw with the highest mean reward on the task's demonstrations, whose outputs are known; None without any.

    This is latent search by policy: the policy proposes changes of the prompt, and what is known selects one.
    """
    if not noise or not demonstrations:
        return None
    rewards = torch.zeros(len(noise), device=device)
    for start in range(0, len(demonstrations), settings.batch_size):
        batch = collator(demonstrations[start : start + settings.batch_size]).to(device)
        inputs, targets = batch.inputs, batch.targets
        prompt = PromptOutput(*models.read(inputs.tokens, inputs.token_mask, inputs.features))
        context = models.agent.read_context(inputs)
        before = models.agent(inputs, prompt.prompt, context)
        for number, draw in enumerate(noise):
            after = models.agent(inputs, models.refined(prompt, batch, draw), context)
            first, second = (answer(each, inputs, targets) for each in (before, after))
            rewards[number] += shaping_reward(first, second, targets.target, inputs.query).reward.sum()
    return int(rewards.argmax())
