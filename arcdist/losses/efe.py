"""The expected free energy of a planned trajectory: a pure function a term, and the module that weighs them."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from arcdist.config.schema import EFE_TERMS, EFEConfig

# T planning steps, B queries, R of them planned backwards, H W canvas, C colours, S hidden states, P prompt.

PROBABILITY_FLOOR = 1e-8
"""Least probability of a colour in a preference or a statistic, so that no divergence from it exceeds ln 1e9."""


def cell_mean(values: Float[Tensor, "B H W *F"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, " B *F"]:
    """Mean over the cells where `mask` holds; 0 for a query without any."""
    inside = mask.reshape(*mask.shape, *(1,) * (values.ndim - mask.ndim))
    cells = inside.sum(dim=(1, 2)).clamp_min(1)
    return torch.where(inside, values, 0.0).sum(dim=(1, 2)) / cells


def query_mean(values: Float[Tensor, " B"], query_weight: Float[Tensor, " B"] | None = None) -> Float[Tensor, ""]:
    """Weighted mean over queries; `query_weight` sums to 1, and none means every query alike."""
    return values.mean() if query_weight is None else (query_weight * values).sum()


def color_shares(grid: Int[Tensor, "B H W"], mask: Bool[Tensor, "B H W"], num_colors: int = 10) -> Float[Tensor, "B C"]:
    """Share of the masked cells that has each colour; a masked cell outside every grid has none of them."""
    colored = F.one_hot(grid.clamp_min(0).long(), num_colors) * (grid >= 0).unsqueeze(-1)
    return cell_mean(colored.float(), mask)


def floored(probs: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
    """The distribution mixed with so much of the uniform one that no colour is below `PROBABILITY_FLOOR`."""
    return probs * (1.0 - probs.shape[-1] * PROBABILITY_FLOOR) + PROBABILITY_FLOOR


def preferred_outcome(
    preference: Float[Tensor, "B H W C"], target: Int[Tensor, "B H W"], target_share: float = 0.9
) -> Float[Tensor, "B H W C"]:
    """C = (1 - kappa) sigma(c) + kappa delta_target where the target is known, sigma(c) where it is not.

    `target_share` is kappa. A target that is known makes the risk a supervision of every planning step.
    """
    known = (target >= 0).unsqueeze(-1)
    delta = F.one_hot(target.clamp_min(0).long(), preference.shape[-1])
    return torch.where(known, (1.0 - target_share) * preference + target_share * delta, preference)


def risk(
    log_forward: Float[Tensor, "T B H W C"], preferred: Float[Tensor, "B H W C"], mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, " B"]:
    """Mean over t of KL(Q->(o_t) || C) in nats, C strictly positive.

    The divergence seeks modes: a cell's gradient fades as Q grows sure of a wrong colour. `consistency` is the term
    whose gradient does not.
    """
    return cell_mean(_kl_divergence(log_forward, preferred.log()).mean(dim=0), mask)


def ambiguity(
    state_logits: Float[Tensor, "T B H W S"], obs_probs: Float[Tensor, "S C"], mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, " B"]:
    """Mean over t of the entropy of P(o_t given s_t) in nats, expected under Q->(s_t)."""
    # The clamp keeps the gradient finite where a probability is 0: 0 x infinity would reach the total even at weight 0.
    entropy = -(obs_probs * obs_probs.clamp_min(PROBABILITY_FLOOR).log()).sum(dim=-1)
    return cell_mean((F.softmax(state_logits, dim=-1) @ entropy).mean(dim=0), mask)


def expected_steps(halting: Float[Tensor, "T B"]) -> Float[Tensor, " B"]:
    """Expected number of planning steps, 1 to T.

    `halting[t]` is the probability to stop after step t, given that step t was taken; the last one is not asked, for
    there the planning ends: 1 + sum over t < T of prod over s <= t of (1 - halting[s]).
    """
    return 1.0 + (1.0 - halting[:-1]).cumprod(dim=0).sum(dim=0)


def stopping(halting: Float[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Probability that the planning stops after each step, from `halting` as in `expected_steps`: sums to 1 over t."""
    going_on = torch.cat([torch.ones_like(halting[:1]), (1.0 - halting[:-1]).cumprod(dim=0)])
    return going_on * torch.cat([halting[:-1], torch.ones_like(halting[:1])])


def consistency(
    log_final: Float[Tensor, "B H W C"], target: Int[Tensor, "B H W"], mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, " B"]:
    """Cross-entropy of a prediction with the target, over the masked cells whose target is known."""
    return cell_mean(_surprise(log_final, target), mask & (target >= 0))


EXPLORED_SHARE = 0.5
"""Share of `consistency` that every step has alike, wherever the planning stops.

Without it, steps that are rarely the last learn little, which makes the planning stop before them: in 36 epochs of
quickstart with 3 steps the agent came to stop after the first.
"""


def expected_consistency(
    log_forward: Float[Tensor, "T B H W C"],
    target: Int[Tensor, "B H W"],
    mask: Bool[Tensor, "B H W"],
    halting: Float[Tensor, "T B"],
) -> Float[Tensor, " B"]:
    """`consistency` of the step that the planning stops after, in expectation (PonderNet, arXiv:2107.05407).

    The planning is taken to stop after a step drawn evenly with the probability `EXPLORED_SHARE`.
    """
    of_steps = cell_mean(_surprise(log_forward, target).movedim(0, -1), mask & (target >= 0))  # [B, T]
    last_step = (1.0 - EXPLORED_SHARE) * stopping(halting) + EXPLORED_SHARE / len(halting)
    return (last_step * of_steps.T).sum(dim=0)


def bidirectional(
    log_forward: Float[Tensor, "T B H W C"], log_backward: Float[Tensor, "T B H W C"], mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, " B"]:
    """Mean over t of the Jensen-Shannon divergence of Q->(o_t) and Q<-(o_t), in nats, within [0, ln 2]."""
    log_middle = torch.logaddexp(log_forward, log_backward) - math.log(2.0)
    divergence = 0.5 * (_kl_divergence(log_forward, log_middle) + _kl_divergence(log_backward, log_middle))
    # Rounding leaves the interval only at its ends, where the gradient vanishes anyway.
    return cell_mean(divergence.clamp(0.0, math.log(2.0)).mean(dim=0), mask)


def of_some(values: Float[Tensor, " R"], rows: Int[Tensor, " R"], queries: int, share: float) -> Float[Tensor, " B"]:
    """A term of a drawn share of the queries, for all: its expectation is what all of them would have."""
    return values.new_zeros(queries).index_copy(0, rows, values / share)


def z_learning(
    preference: Float[Tensor, "B H W C"], statistics: Float[Tensor, " C"], mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, " B"]:
    """KL(sigma(c) || C^): the learned preference against the outcome statistics, both strictly positive."""
    return cell_mean(_kl_divergence(preference.log(), statistics.log()), mask)


def prompt_alignment(
    projected_prompt: Float[Tensor, "B C"], predicted_colors: Float[Tensor, "B C"]
) -> Float[Tensor, " B"]:
    """1 - cosine, within [0, 2].

    Only the prompt's side is projected by learned weights. Were the colours' side learned too, both could turn to one
    constant direction and the term would say nothing about the colours.
    """
    return 1.0 - F.cosine_similarity(projected_prompt, predicted_colors, dim=-1)


def _surprise(log_colors: Float[Tensor, "*T B H W C"], target: Int[Tensor, "B H W"]) -> Float[Tensor, "*T B H W"]:
    wanted = target.clamp_min(0).long().expand(log_colors.shape[:-1]).unsqueeze(-1)
    return -log_colors.gather(-1, wanted).squeeze(-1)


def _kl_divergence(log_p: Float[Tensor, "*N C"], log_q: Float[Tensor, "*M C"]) -> Float[Tensor, "*N"]:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


class EFELoss(nn.Module):
    """The expected-free-energy loss: its terms over valid cells, in float32 whatever the precision of the logits.

    It owns the preference sigma(c), which starts uniform, what the prompt moves in it, the prompt's projection to
    colours, and the running statistics of the outcomes. Each term is a mean over a query's valid cells, then over the
    queries, so that neither padding nor the size of a grid weighs in.

    Args:
        target_share: kappa of `preferred_outcome`.
        statistics_decay: share of the old value in the moving average of the target colours.
        max_grid_size: longest side of a canvas.
        num_colors: colours C.
        prompt_dim: width P of the prompt.
        lambdas: weights of the terms by their keys in `EFEConfig`, which also has the defaults: `lambda_risk=1.0`.
    """

    outcome_statistics: Float[Tensor, " C"]

    def __init__(
        self,
        *,
        target_share: float = 0.9,
        statistics_decay: float = 0.99,
        max_grid_size: int = 30,
        num_colors: int = 10,
        prompt_dim: int = 256,
        **lambdas: float,
    ) -> None:
        super().__init__()
        keys = {key.name for key in EFE_TERMS.values()}
        if not lambdas.keys() <= keys:
            raise TypeError(f"EFELoss has no {', '.join(lambdas.keys() - keys)}: choose among {', '.join(keys)}.")
        defaults = EFEConfig()
        self.weights = {term: lambdas.get(key.name, getattr(defaults, key.name)) for term, key in EFE_TERMS.items()}
        self.target_share = target_share
        self.statistics_decay = statistics_decay
        self.preference = nn.Parameter(torch.zeros(max_grid_size, max_grid_size, num_colors))
        self.prompt_preference_mapper = nn.Linear(prompt_dim, num_colors)
        nn.init.zeros_(self.prompt_preference_mapper.weight)
        nn.init.zeros_(self.prompt_preference_mapper.bias)
        self.prompt_projection = nn.Linear(prompt_dim, num_colors)
        self.register_buffer("outcome_statistics", torch.full((num_colors,), 1.0 / num_colors))

    def forward(
        self,
        forward_logits: Float[Tensor, "T B H W C"],
        backward_logits: Float[Tensor, "T B H W C"],
        state_logits: Float[Tensor, "T B H W S"],
        obs_probs: Float[Tensor, "S C"],
        final_logits: Float[Tensor, "B H W C"],
        target: Int[Tensor, "B H W"],
        prompt_embedding: Float[Tensor, "B P"],
        grid_mask: Bool[Tensor, "B H W"],
        *,
        query_weight: Float[Tensor, " B"] | None = None,
        halting: Float[Tensor, "T B"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The unweighted terms and `total` = sum of lambda x term, each a mean over the queries.

        Arguments as in `per_query`; `query_weight` sums to 1 (default: every query alike).
        """
        terms = self.per_query(
            *(forward_logits, backward_logits, state_logits, obs_probs, final_logits),
            *(target, prompt_embedding, grid_mask),
            halting=halting,
        )
        return {name: query_mean(values, query_weight) for name, values in terms.items()}

    def per_query(
        self,
        forward_logits: Float[Tensor, "T B H W C"],
        backward_logits: Float[Tensor, "T R H W C"],
        state_logits: Float[Tensor, "T B H W S"],
        obs_probs: Float[Tensor, "S C"],
        final_logits: Float[Tensor, "B H W C"],
        target: Int[Tensor, "B H W"],
        prompt_embedding: Float[Tensor, "B P"],
        grid_mask: Bool[Tensor, "B H W"],
        *,
        halting: Float[Tensor, "T B"] | None = None,
        backward: Int[Tensor, " R"] | None = None,
        backward_share: float = 1.0,
    ) -> dict[str, Float[Tensor, " B"]]:
        """The same terms and `total` for each query; all 0 for a query without a valid cell.

        Logits need not be normalised; the rows of `obs_probs` are distributions. `target` is `OUTSIDE` (-1) where it is
        unknown: such a cell of `grid_mask` counts in every term but `consistency`. `halting` as in `expected_steps`;
        none means that every step is always taken. `backward` are the queries whose backward trajectory is known (none:
        all), drawn with the probability `backward_share`: `bidirectional` is 0 for the others, and as much larger for
        these, so that its expectation is that of all.

        With `halting`, `consistency` is `expected_consistency`: each step learns as far as the answer may be its own,
        and stopping is worth what the steps that it saves would not improve.

        Raises:
            ValueError: the canvas exceeds `max_grid_size`.
        """
        with torch.autocast(forward_logits.device.type, enabled=False):
            log_forward = F.log_softmax(forward_logits.float(), dim=-1)
            log_backward = F.log_softmax(backward_logits.float(), dim=-1)
            log_final = F.log_softmax(final_logits.float(), dim=-1)
            prompt = prompt_embedding.float()

            steps, queries, height, width, _ = forward_logits.shape
            both_ways = slice(None) if backward is None else backward
            divergence = bidirectional(log_forward[:, both_ways], log_backward, grid_mask[both_ways])
            if backward is not None:
                divergence = of_some(divergence, backward, queries, backward_share)
            preference = self.preferred_colors(prompt, height, width)
            predicted_colors = cell_mean(log_final.exp(), grid_mask)
            terms = {
                "risk": risk(log_forward, preferred_outcome(preference, target, self.target_share), grid_mask),
                "ambiguity": ambiguity(state_logits.float(), obs_probs.float(), grid_mask),
                "step": prompt.new_full((queries,), steps) if halting is None else expected_steps(halting.float()),
                "consistency": consistency(log_final, target, grid_mask)
                if halting is None
                else expected_consistency(log_forward, target, grid_mask, halting.float()),
                "bidirectional": divergence,
                "z_learning": z_learning(preference, floored(self.outcome_statistics), grid_mask),
                "prompt": prompt_alignment(self.prompt_projection(prompt), predicted_colors),
            }
            has_cells = grid_mask.any(dim=2).any(dim=1)
            terms = {name: torch.where(has_cells, values, 0.0) for name, values in terms.items()}
            total = torch.stack([self.weights[name] * values for name, values in terms.items()]).sum(dim=0)
        return {**terms, "total": total}

    def preferred_colors(
        self, prompt: Float[Tensor, "B P"], height: int, width: int
    ) -> Float[Tensor, "B {height} {width} C"]:
        """sigma(c) on the canvas: a colour preference a cell, moved alike in all cells by the prompt."""
        if max(height, width) > len(self.preference):
            raise ValueError(
                f"The canvas is {height} x {width}, but EFELoss holds preferences for {len(self.preference)} x "
                f"{len(self.preference)} cells: build it with max_grid_size >= {max(height, width)}."
            )
        moved = self.prompt_preference_mapper(prompt)[:, None, None]
        return floored(F.softmax(self.preference[:height, :width] + moved, dim=-1))

    @torch.no_grad()
    def observe(self, target_colors: Float[Tensor, " C"]) -> None:
        """Move the outcome statistics towards a batch's target colours, shares or counts; all zeros move nothing.

        Called once a step with the same numbers on every process, so that the statistics stay alike.
        """
        seen = target_colors.sum()
        shares = torch.where(seen > 0, target_colors / seen.clamp_min(PROBABILITY_FLOOR), self.outcome_statistics)
        self.outcome_statistics.lerp_(shares, 1.0 - self.statistics_decay)
