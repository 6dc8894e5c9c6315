"""The solver: recalls solved problems, proposes a grid from them, and says how far to trust it."""

# B queries, k recalled problems, H W canvas, C colours, C1 = C + 1 (the last is "outside"), P = D features.
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.cluster import DBSCAN
from torch import Tensor, nn
from torch.nn import functional as F

from arcdist.data.batch import OUTSIDE, QueryInputs
from arcdist.models.context import one_hot_colors
from arcdist.models.memory import SolvedMemory, query_keys

_FLOOR = 1e-4
_FIRST_CONFIDENCE_LOGIT = -3.0
_CLUSTER_RADIUS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What the memory suggests for B queries."""

    candidate: Float[Tensor, "B H W C"]
    """Log-probabilities of the colours."""
    confidence_logit: Float[Tensor, " B"]
    """Logit of the weight of the candidate against the agent's answer."""

    def weigh(self, agent_logits: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        """log((1 - confidence) Q_agent + confidence candidate)."""
        trust = F.logsigmoid(self.confidence_logit)[:, None, None, None]
        distrust = F.logsigmoid(-self.confidence_logit)[:, None, None, None]
        return torch.logaddexp(agent_logits.float().log_softmax(-1) + distrust, self.candidate + trust)


class PermanentSolver(nn.Module):
    """Attention over the nearest solved problems.

    Each recalled problem makes two suggestions, weighed by a learned gate: its own outcome, cell by cell, and its
    colour map applied to the query. A learned null entry, which suggests the query itself, stands for "none fits".

    Args:
        capacity: most problems held.
        feature_dim: width of a problem's features; the prompt serves as such.
        top_k: problems recalled for a query.
        max_grid_size: longest side of a grid.
        num_colors: colours C.
    """

    def __init__(
        self,
        capacity: int = 10_000,
        feature_dim: int = 256,
        top_k: int = 5,
        max_grid_size: int = 30,
        num_colors: int = 10,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.num_colors = num_colors
        self.memory = SolvedMemory(
            capacity=capacity, feature_dim=feature_dim, max_grid_size=max_grid_size, num_colors=num_colors
        )
        self.to_query = nn.Linear(feature_dim, 64)
        self.to_key = nn.Linear(feature_dim, 64)
        self.null_key = nn.Parameter(torch.zeros(64))
        self.sharpness = nn.Parameter(torch.tensor(5.0))
        self.suggestion = nn.Linear(feature_dim, 2)
        confidence_logit = nn.Linear(64, 1)
        nn.init.constant_(confidence_logit.bias, _FIRST_CONFIDENCE_LOGIT)
        self.confidence = nn.Sequential(nn.Linear(feature_dim + top_k + 1, 64), nn.SiLU(), confidence_logit)

    def forward(self, features: Float[Tensor, "B D"], inputs: QueryInputs, ids: Sequence[str]) -> Proposal:
        """Propose a grid for each query from the problems most like it; `ids` keeps a query from recalling itself.

        In float32 under any autocast.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self._propose(F.normalize(features.float(), dim=-1), inputs, query_keys(ids).to(features.device))

    def _propose(self, features: Float[Tensor, "B D"], inputs: QueryInputs, own_keys: Int[Tensor, " B"]) -> Proposal:
        batch, height, width = inputs.query.shape
        recalled = self.memory.recall(features, own_keys, k=self.top_k, height=height, width=width)

        keys = torch.cat([self.to_key(recalled.features), self.null_key.expand(batch, 1, -1)], dim=1)  # [B, k+1, 64]
        match = torch.einsum("bd,bkd->bk", self.to_query(features), keys) / keys.shape[-1] ** 0.5
        match = match + self.sharpness * F.pad(recalled.similarity, (0, 1))
        match = match.masked_fill(~F.pad(recalled.found, (0, 1), value=True), -torch.inf)
        attention = match.softmax(-1)

        as_is, by_map = (attention[:, :-1, None] * self.suggestion(features).softmax(-1)[:, None]).unbind(-1)  # [B, k]
        query = one_hot_colors(inputs.query, self.num_colors)
        outcomes = recalled.outcomes.movedim(1, -1)  # [B, H, W, k]
        spot = outcomes.where(outcomes != OUTSIDE, self.num_colors)
        suggested = torch.zeros_like(query).scatter_add(-1, spot, as_is[:, None, None].expand(spot.shape))
        colors = query[..., :-1]
        turned = torch.einsum("bhwc,bcd->bhwd", colors, torch.einsum("bk,bkcd->bcd", by_map, recalled.color_maps))
        candidate = suggested[..., :-1] + turned + attention[:, -1, None, None, None] * colors + _FLOOR

        evidence = torch.cat([features, recalled.similarity, attention[:, -1:]], dim=-1)
        return Proposal(
            candidate=(candidate / candidate.sum(-1, keepdim=True)).log(),
            confidence_logit=self.confidence(evidence).squeeze(-1),
        )

    @torch.no_grad()
    def remember(
        self,
        *,
        ids: Sequence[str],
        features: Float[Tensor, "B D"],
        queries: Int[Tensor, "B H W"],
        outcomes: Int[Tensor, "B H W"],
        exact: Bool[Tensor, " B"],
        step: int,
    ) -> None:
        """Add solved problems to the memory."""
        keys = query_keys(ids)
        self.memory.add(keys=keys, features=features, queries=queries, outcomes=outcomes, exact=exact, step=step)

    def statistics(self) -> dict[str, float]:
        """Size of the memory, share solved exactly, and clusters of like problems (DBSCAN on cosine distance)."""
        used = len(self.memory)
        if not used:
            return {"problems": 0.0, "exact": 0.0, "clusters": 0.0}
        features = self.memory.features[:used].cpu().numpy().astype(np.float64)
        labels = DBSCAN(eps=_CLUSTER_RADIUS, min_samples=2, metric="cosine").fit_predict(features)
        return {
            "problems": float(used),
            "exact": float(self.memory.exact[:used].float().mean()),
            "clusters": float(len(set(labels.tolist()) - {-1})),
        }
