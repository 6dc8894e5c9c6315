"""The grid agent: a query's grid and a prompt in, planning steps of colours and a size out."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arcdist.data.batch import QueryInputs
from arcdist.models.cores import (
    Context,
    ContextEncoder,
    ConvCore,
    PlanningStep,
    RecursiveCore,
    cells_within,
    dropout_factors,
    one_hot_colors,
    product_flops,
)

# T steps, B queries, R of them planned backwards, r of these taken, K context pairs, H W canvas, C colours, C1 = C + 1
# (the last is "outside"), S states (= C), P prompt, D width of a cell's state and of the conditioning, G largest side
# of a grid, U rules of the size.

_OBSERVATION_SHARPNESS = 6.0
"""P(o | s) is nearly the identity at the start, so that states begin as colours."""
_SIZE_FLOOR = 1e-6
_SIGNAL_FLOOR = 1e-4
"""Entropies in nats and moved probabilities below this are as good as none."""

RULES = ("as the query", "as the first context output", "as the last context output", "by the context's mean ratio")


def size_candidates(inputs: QueryInputs, max_grid_size: int) -> Int[Tensor, "U B 2"]:
    """The size that each of `RULES` gives each query.

    Same, constant and fixed-ratio sizes over the demonstrations cover 88 % of ARC-AGI-1's evaluation outputs.
    """
    sizes = inputs.context_sizes  # [B, K, (input, output), (height, width)]
    real = sizes[:, :, 0, :1] > 0  # [B, K, 1]
    last = (real.sum(1) - 1).clamp(min=0)[:, :, None].expand(-1, -1, 2)  # [B, 1, 2]
    ratio = (sizes[:, :, 1] / sizes[:, :, 0].clamp(min=1)).where(real, 0.0).sum(1) / real.sum(1).clamp(min=1)
    candidates = torch.stack(
        [
            inputs.query_size,
            sizes[:, 0, 1],
            sizes[:, :, 1].gather(1, last)[:, 0],
            (inputs.query_size * ratio).round().long(),
        ]
    )
    return candidates.clamp(1, max_grid_size)


class SizeHead(nn.Module):
    """log p(height), log p(width) = log sum over rules of gate * delta(rule's size) + free gate * free guess."""

    def __init__(self, *, conditioning_dim: int, max_grid_size: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.max_grid_size = max_grid_size
        numbers = 2 * (len(RULES) + 1)  # Height and width of each rule's size, and of the working area.
        self.hidden = nn.Linear(conditioning_dim + numbers, hidden_dim)
        self.guess = nn.Linear(hidden_dim, 2 * max_grid_size)
        self.gates = nn.Linear(hidden_dim, 2 * (len(RULES) + 1))

    def forward(self, conditioning: Float[Tensor, "B D"], inputs: QueryInputs) -> Float[Tensor, "B 2 G"]:
        """Log-probabilities of the heights and widths 1 to G."""
        candidates = size_candidates(inputs, self.max_grid_size)
        numbers = torch.cat([candidates, inputs.working_area[None]]).movedim(0, 1).flatten(1) / self.max_grid_size
        hidden = F.silu(self.hidden(torch.cat([conditioning, numbers.to(conditioning.dtype)], dim=-1)))
        guess = self.guess(hidden).float().unflatten(-1, (2, -1)).softmax(-1)
        gates = self.gates(hidden).float().unflatten(-1, (2, -1)).softmax(-1)  # [B, 2, U+1]
        rules = F.one_hot(candidates - 1, self.max_grid_size).permute(1, 2, 0, 3).float()  # [B, 2, U, G]
        mixed = (gates[..., None] * torch.cat([rules, guess[:, :, None]], dim=2)).sum(2)
        return (mixed + _SIZE_FLOOR).log().log_softmax(-1)


def predicted_size(size_logits: Float[Tensor, "B 2 G"], working_area: Int[Tensor, "B 2"]) -> Int[Tensor, "B 2"]:
    """The likeliest size that fits into each query's working area."""
    sizes = torch.arange(1, size_logits.shape[-1] + 1, device=size_logits.device)
    fits = sizes <= working_area[..., None]
    return size_logits.where(fits, -torch.inf).argmax(-1) + 1


class Emission(nn.Module):
    """Cell state -> Q(s) -> Q(o) = sum_s Q(s) P(o | s), in log-space."""

    def __init__(self, hidden_dim: int, num_colors: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.to_states = nn.Linear(hidden_dim, num_colors)
        nn.init.zeros_(self.to_states.weight)
        self.observation = nn.Parameter(torch.eye(num_colors) * _OBSERVATION_SHARPNESS)

    def forward(self, state: Float[Tensor, "B H W D"]) -> tuple[Float[Tensor, "B H W S"], Float[Tensor, "B H W C"]]:
        """Logits of the states and log-probabilities of the colours."""
        state_logits = self.to_states(self.norm(state)).float()
        # Logarithms of products rounded to bfloat16 would be off by up to 1 %.
        with torch.autocast(state.device.type, enabled=False):
            colors = state_logits.softmax(-1) @ self.observation.softmax(-1)
        return state_logits, colors.log()


class Halting(nn.Module):
    """After each planning step, the probability that the planning stops there.

    It looks at how sure the predicted colours are, and how much they have moved since the step before (LoopViT, arXiv
    2602.02156, stops where the entropy is stable). No gradient flows into either: the agent shall not become surer than
    it should be in order to stop sooner.
    """

    def __init__(self, max_steps: int, hidden_dim: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, hidden_dim)
        self.out = nn.Linear(hidden_dim, 1)
        nn.init.zeros_(self.out.weight)
        # An untrained agent may stop after any step.
        nn.init.constant_(self.out.bias, -math.log(max(max_steps - 1, 1)))

    def forward(
        self,
        log_colors: Float[Tensor, "T B H W C"],
        before: Float[Tensor, "T B H W C"],
        area: Bool[Tensor, "B H W"],
    ) -> Float[Tensor, "T B"]:
        """The probability to stop after each step, if it is taken; `before` is what was believed at its beginning."""
        with torch.no_grad():
            colors = log_colors.exp()
            inside = area.to(colors.dtype)
            entropy = -(colors * log_colors).sum(-1) * inside  # [T, B, H, W]
            moved = 0.5 * (colors - before).abs().sum(-1) * inside
            cells = inside.sum((1, 2)).clamp_min(1.0)
            signals = [signal for of in (entropy, moved) for signal in (of.sum((2, 3)) / cells, of.amax((2, 3)))]
            # An answer is right if all of its cells are: small differences near certainty matter most.
            signal = (torch.stack(signals, -1) + _SIGNAL_FLOOR).log()
        return self.out(F.silu(self.hidden(signal))).squeeze(-1).float().sigmoid()


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the agent plans for B queries on the way ahead. Logits of colours are log-probabilities."""

    forward_logits: Float[Tensor, "T B H W C"]
    """Q->(o_t), t = 1..T, from the query's input."""
    state_logits: Float[Tensor, "T B H W S"]
    """Q->(s_t), unnormalised."""
    size_logits: Float[Tensor, "B 2 G"]
    """Log-probabilities of the answer's height and width, 1 to `max_grid_size`."""
    area: Bool[Tensor, "B H W"]
    """The cells that were computed: each query's working area."""
    halting: Float[Tensor, "T B"] | None
    """Probability to stop after each step, given that it was taken; None for an agent that always takes all."""

    @property
    def steps(self) -> Int[Tensor, " B"]:
        """Steps, 1 to T, after which each query is answered: the first ones of which stopping is likelier than not."""
        if self.halting is None:
            return torch.full_like(self.area[:, 0, 0], len(self.forward_logits), dtype=torch.int64)
        goes_on = (1.0 - self.halting.detach()[:-1]).cumprod(0) > 0.5
        return 1 + goes_on.sum(0)

    @property
    def final_logits(self) -> Float[Tensor, "B H W C"]:
        """Q->(o_t) of the step after which each query is answered."""
        if self.halting is None:
            return self.forward_logits[-1]
        return self.forward_logits[self.steps - 1, torch.arange(len(self.area), device=self.area.device)]


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentOutput(Plan):
    """The way ahead, and the way back from the predicted outcome."""

    backward_logits: Float[Tensor, "T R H W C"]
    """Q<-(o_t) of some of the queries, aligned with `forward_logits`, from the predicted outcome."""
    reconstruction_logits: Float[Tensor, "R H W C"]
    """Their inputs as the backward trajectory arrives at them."""
    obs_probs: Float[Tensor, "S C"]
    """P(o | s)."""

    @property
    def ahead(self) -> Plan:
        """The way ahead alone, of all queries."""
        return Plan(**{each.name: getattr(self, each.name) for each in fields(Plan)})

    def take(self, rows: Int[Tensor, " r"], places: Int[Tensor, " r"]) -> "AgentOutput":
        """Some of those that are planned backwards: their rows, and their places among the R."""
        return replace(
            self,
            forward_logits=self.forward_logits[:, rows],
            state_logits=self.state_logits[:, rows],
            size_logits=self.size_logits[rows],
            area=self.area[rows],
            halting=None if self.halting is None else self.halting[:, rows],
            backward_logits=self.backward_logits[:, places],
            reconstruction_logits=self.reconstruction_logits[places],
        )


class PlanningFlops(NamedTuple):
    """Operations of the agent's forward pass for one view of a query."""

    context: float
    """Of reading the context pairs."""
    ahead: float
    """Of the way ahead."""
    back: float
    """Of the way back."""

    def training(self, backward_share: float, tried: float) -> float:
        """Operations of learning from a view: a backward pass counts as two forward ones.

        It has a little less, since data, such as the colours of a grid, needs no gradient.

        Args:
            backward_share: of the views that is planned backwards.
            tried: answers for a view, there and back and without a gradient, that rewards compare with; a mean.
        """
        return 3.0 * (self.context + self.ahead + backward_share * self.back) + tried * (self.ahead + self.back)


class ARCPromptGuidedAgent(nn.Module):
    """Plans T steps from a query's input towards its answer, and back again.

    Args:
        kind: `recursive` (one weight-shared block, context pairs, task vectors) or `conv` (an encoder, a head a step).
        max_grid_size: longest side of a grid.
        num_colors: colours C.
        hidden_dim: width of a cell's state; a multiple of 16 for `recursive`.
        prompt_dim: width P of the prompt.
        max_steps: planning steps T.
        num_tasks: training tasks; rows of the table of task vectors.
        task_vectors: whether the table exists (`recursive` only).
        task_vector_dropout: share of the queries that are learned as if their task were unknown; kept for the data.
        dropout: share of the hidden channels (of the block; in `conv` of the encoding) that a view is learned without.
        attention: whether the cells of a grid attend to each other in every step (`recursive` only).
        halting: whether the agent says after each step how likely the planning stops there.
        ema_decay: decay of the moving average of the weights; kept for the training step, see `EMA`.
        views_per_reading: views of a query that learn with one prompt; kept for the training step.
        backward_share: share of the views that the training step plans backwards; kept for it.
    """

    def __init__(
        self,
        kind: Literal["recursive", "conv"] = "recursive",
        max_grid_size: int = 30,
        num_colors: int = 10,
        hidden_dim: int = 256,
        prompt_dim: int = 256,
        max_steps: int = 5,
        *,
        num_tasks: int = 0,
        task_vectors: bool = True,
        task_vector_dropout: float = 0.0,
        dropout: float = 0.0,
        attention: bool = False,
        halting: bool = True,
        ema_decay: float = 0.999,
        views_per_reading: int = 1,
        backward_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_colors = num_colors
        self.max_steps = max_steps
        self.task_vector_dropout = task_vector_dropout
        self.dropout = dropout
        self.ema_decay = ema_decay
        self.views_per_reading = views_per_reading
        self.backward_share = backward_share
        self.from_prompt = nn.Linear(prompt_dim, hidden_dim)
        self.directions = nn.Parameter(torch.randn(2, hidden_dim) * 0.5)
        self.views = nn.Parameter(torch.randn(8, hidden_dim) * 0.5)
        self.mix_condition = nn.Sequential(
            nn.Linear(hidden_dim, 2 * hidden_dim), nn.SiLU(), nn.Linear(2 * hidden_dim, hidden_dim)
        )
        self.task_vectors: nn.Embedding | None = None
        self.context_encoder: ContextEncoder | None = None
        self.core: RecursiveCore | ConvCore
        if kind == "recursive":
            if task_vectors:
                # Row 0 is the unknown task: it stays zero and gets no gradient.
                self.task_vectors = nn.Embedding(num_tasks + 1, hidden_dim, padding_idx=0)
            sizes = {"num_colors": num_colors, "max_grid_size": max_grid_size, "hidden_dim": hidden_dim}
            heads = max(1, hidden_dim // 16)
            self.context_encoder = ContextEncoder(**sizes, heads=heads)
            self.core = RecursiveCore(**sizes, heads=heads, attention=attention)
        else:
            self.core = ConvCore(num_colors=num_colors, hidden_dim=hidden_dim, max_steps=max_steps)
        self.emission = Emission(hidden_dim, num_colors)
        self.halting = Halting(max_steps) if halting else None
        self.origin = nn.Linear(hidden_dim, num_colors)
        self.size_head = SizeHead(conditioning_dim=hidden_dim, max_grid_size=max_grid_size)

    def matrices(self) -> list[nn.Parameter]:
        """The weights of the core's hidden layers, which map vectors to vectors."""
        hidden = (self.core.block,) if isinstance(self.core, RecursiveCore) else (self.core.second, self.core.heads)
        return [parameter for part in hidden for parameter in part.parameters() if parameter.ndim == 2]

    def flops(self, height: int, width: int, pairs: int) -> PlanningFlops:
        """Operations for one view of a query on a canvas, with so many context pairs, absent ones included.

        Matrix products, convolutions and attention count.
        """
        steps, cells = self.max_steps, height * width
        emission = steps * (product_flops(cells, self.emission.to_states) + 2.0 * cells * self.num_colors**2)
        trajectory = self.core.flops(height, width, pairs, steps) + emission
        # Both directions are steered for all views.
        steering = product_flops(1, self.from_prompt, self.mix_condition, self.mix_condition, self.size_head)
        halting = 0.0 if self.halting is None else product_flops(steps, self.halting)
        return PlanningFlops(
            context=0.0 if self.context_encoder is None else self.context_encoder.flops(height, width, pairs),
            ahead=steering + trajectory + halting,
            back=trajectory + product_flops(cells, self.origin),
        )

    def read_context(self, inputs: QueryInputs) -> Context | None:
        """Encode the context pairs; the prompt plays no part, so one reading serves several prompts."""
        return self.context_encoder(inputs) if self.context_encoder is not None else None

    def forward(
        self,
        inputs: QueryInputs,
        prompt: Float[Tensor, "B P"],
        context: Context | None = None,
        *,
        backward: Int[Tensor, " R"] | None = None,
    ) -> AgentOutput:
        """Plan forward from the query's input, then backward from the predicted outcome.

        Args:
            inputs: the queries; never their targets.
            prompt: one prompt a query.
            context: what `read_context(inputs)` gave, if it has been called already.
            backward: the queries that are planned backwards; none means all.
        """
        if context is None:
            context = self.read_context(inputs)
        ahead, back = self._conditioning(inputs, prompt, context)
        plan = self._plan_ahead(inputs, ahead, context)
        area, size_logits, outcome = plan.area, plan.size_logits.detach(), plan.final_logits.detach().exp()
        if backward is not None:
            area, size_logits, outcome, back = (each[backward] for each in (area, size_logits, outcome, back))
            inputs = inputs.take(backward)
            context = None if context is None else context.take(backward)
        # The way back starts from the answer itself, without a gradient into the way ahead.
        outcome_size = predicted_size(size_logits, inputs.working_area)
        inside = cells_within(outcome_size, *area.shape[1:])[..., None].float()
        start = torch.cat([outcome * inside, 1.0 - inside], dim=-1)
        step = self.core.start(start, outcome_size, back, context, area, self._dropout(inputs))
        _, backward_logits, last = self._trajectory(step, start, area)
        return AgentOutput(
            forward_logits=plan.forward_logits,
            state_logits=plan.state_logits,
            size_logits=plan.size_logits,
            area=plan.area,
            halting=plan.halting,
            backward_logits=backward_logits.flip(0),
            reconstruction_logits=self.origin(last).float().log_softmax(-1),
            obs_probs=self.emission.observation.float().softmax(-1),
        )

    def plan(self, inputs: QueryInputs, prompt: Float[Tensor, "B P"], context: Context | None = None) -> Plan:
        """The way ahead alone; arguments as for a call."""
        if context is None:
            context = self.read_context(inputs)
        return self._plan_ahead(inputs, self._conditioning(inputs, prompt, context)[0], context)

    def plan_until_stopped(
        self, inputs: QueryInputs, prompt: Float[Tensor, "B P"], context: Context | None = None
    ) -> Plan:
        """The same answers as `plan`, without the steps after which they are given: they repeat the answer.

        The host waits for the device after each step, to learn which queries go on.
        """
        if context is None:
            context = self.read_context(inputs)
        ahead, _ = self._conditioning(inputs, prompt, context)
        return self._plan_ahead(inputs, ahead, context, until_stopped=True)

    def _conditioning(
        self, inputs: QueryInputs, prompt: Float[Tensor, "B P"], context: Context | None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """What steers the way ahead and the way back."""
        # A component of the prompt is of size 1. Scaled down, a step of the optimizer, which moves all P weights alike,
        # moves the conditioning by as much as a step on the other parts does.
        conditioning = self.from_prompt(prompt * prompt.shape[-1] ** -0.5) + self.views[inputs.dihedral]
        if self.task_vectors is not None:
            conditioning = conditioning + self.task_vectors(inputs.task_index + 1)
        if context is not None:
            conditioning = conditioning + context.summary
        directed = [conditioning + direction for direction in self.directions]
        ahead, back = (each + self.mix_condition(each) for each in directed)
        return ahead, back

    def _dropout(self, inputs: QueryInputs) -> Float[Tensor, "B D"] | None:
        """Factors of each view's channels, while the agent learns."""
        if not (self.dropout and self.training):
            return None
        return dropout_factors(inputs.dropout_seed, self.views.shape[1], self.dropout)

    def _plan_ahead(
        self, inputs: QueryInputs, ahead: Float[Tensor, "B D"], context: Context | None, *, until_stopped: bool = False
    ) -> Plan:
        area = cells_within(inputs.working_area, *inputs.query.shape[1:])
        query = one_hot_colors(inputs.query, self.num_colors)
        step = self.core.start(query, inputs.query_size, ahead, context, area, self._dropout(inputs))
        halting = None
        if self.halting is None or not until_stopped:
            state_logits, forward_logits, _ = self._trajectory(step, query, area)
            if self.halting is not None:
                before = torch.cat([query[None, ..., : self.num_colors], forward_logits[:-1].detach().exp()])
                halting = self.halting(forward_logits, before, area)
        else:
            state_logits, forward_logits, halting = self._trajectory_until_stopped(self.halting, step, query, area)
        return Plan(
            forward_logits=forward_logits,
            state_logits=state_logits,
            size_logits=self.size_head(ahead, inputs),
            area=area,
            halting=halting,
        )

    def _trajectory(
        self, step: PlanningStep, grid: Float[Tensor, "B H W C1"], area: Bool[Tensor, "B H W"]
    ) -> tuple[Float[Tensor, "T B H W S"], Float[Tensor, "T B H W C"], Float[Tensor, "B H W D"]]:
        """A trajectory from the grid that it starts from: states and colours of each step, and the state at its end."""
        inside = area[..., None].to(grid.dtype)
        belief = grid[..., : self.num_colors]
        steps = []
        for _ in range(self.max_steps):
            state = step(belief)
            state_logits, color_logits = self.emission(state)
            steps.append((state_logits, color_logits))
            belief = color_logits.exp() * inside
        states, colors = zip(*steps, strict=True)
        return torch.stack(states), torch.stack(colors), state

    def _trajectory_until_stopped(
        self,
        asked: Halting,
        step: PlanningStep,
        grid: Float[Tensor, "B H W C1"],
        area: Bool[Tensor, "B H W"],
    ) -> tuple[Float[Tensor, "T B H W S"], Float[Tensor, "T B H W C"], Float[Tensor, "T B"]]:
        """States and colours of each step, the last that was taken again for those that were not, and the halting."""
        belief = grid[..., : self.num_colors]
        going_on = torch.arange(len(grid), device=grid.device)
        goes_on = torch.ones(len(grid), device=grid.device)
        kept: Tensor | None = None  # Which of those that took the step before go on; at first all.
        taken: list[tuple[Tensor, ...]] = []
        for _ in range(self.max_steps):
            state_logits, log_colors = self.emission(step(belief, kept))
            halting = asked(log_colors[None], belief[None], area[going_on])[0]
            before = taken[-1][:2] if taken else (torch.zeros_like(state_logits), torch.zeros_like(log_colors))
            stopped = torch.ones_like(goes_on)
            of_step = zip((*before, stopped), (state_logits, log_colors, halting), strict=True)
            taken.append(tuple(old.index_copy(0, going_on, new) for old, new in of_step))
            goes_on = goes_on * (1.0 - taken[-1][2])
            kept = (goes_on[going_on] > 0.5).nonzero().squeeze(1)
            going_on = going_on[kept]
            if not len(going_on):
                break
            belief = log_colors[kept].exp() * area[going_on][..., None]
        taken += [(*taken[-1][:2], stopped)] * (self.max_steps - len(taken))
        states, colors, stops = (torch.stack(each) for each in zip(*taken, strict=True))
        return states, colors, stops
