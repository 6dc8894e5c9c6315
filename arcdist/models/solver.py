"""The solver: recalls solved problems, proposes a grid from them, and says how far to trust it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from sklearn.cluster import DBSCAN
from torch import Tensor, nn
from torch.nn import functional as F

from arcdist.data.batch import OUTSIDE, QueryInputs, fit_canvas
from arcdist.models.cores import one_hot_colors

# N capacity, B queries, n admitted ones, k recalled problems, H W canvas, G largest side, C colours, D features.

_FIELDS = ("features", "outcomes", "color_maps", "keys", "exact", "age")
_MATCH_DIM = 64
_CANDIDATE_FLOOR = 1e-4
_FIRST_CONFIDENCE_LOGIT = -3.0
_CLUSTER_RADIUS = 0.1
"""Cosine distance within which solved problems are neighbours."""


def query_keys(ids: Sequence[str]) -> Int[Tensor, " B"]:
    """A stable 63-bit number for each query id, so that a memory is tensors only."""
    digests = (hashlib.blake2b(query_id.encode(), digest_size=8).digest() for query_id in ids)
    return torch.tensor([int.from_bytes(d, "little") >> 1 for d in digests], dtype=torch.int64)


def color_map(query: Int[Tensor, "B H W"], outcome: Int[Tensor, "B H W"], num_colors: int) -> Float[Tensor, "B C C"]:
    """Row c: shares of the outcome's colours where the query has colour c; zeros if it has none."""
    both = (query != OUTSIDE) & (outcome != OUTSIDE)
    pair = torch.where(both, query * num_colors + outcome, num_colors**2).flatten(1)
    counts = torch.zeros(len(query), num_colors**2 + 1, device=query.device)
    counts = counts.scatter_add_(1, pair, torch.ones_like(pair, dtype=counts.dtype))
    counts = counts[:, :-1].unflatten(1, (num_colors, num_colors))
    return counts / counts.sum(-1, keepdim=True).clamp(min=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbors:
    """The k nearest solved problems of B queries."""

    similarity: Float[Tensor, "B k"]
    """Cosine of the features; 0 where nothing was found."""
    found: Bool[Tensor, "B k"]
    """False where the memory holds fewer than k problems that the query may see."""
    features: Float[Tensor, "B k D"]
    outcomes: Int[Tensor, "B k H W"]
    """The answer's colours on the query's canvas, `OUTSIDE` beyond it."""
    color_maps: Float[Tensor, "B k C C"]
    """How the problem turned colours: see `color_map`."""


class SolvedMemory(nn.Module):
    """Up to `capacity` solved problems, filled from slot 0 on. A query solved again replaces its own entry.

    When all slots are taken, the oldest entry that was not solved exactly goes; if there is none, a problem that was
    solved exactly replaces the oldest entry, and any other is not remembered.
    """

    features: Float[Tensor, "N D"]
    outcomes: Int[Tensor, "N G G"]
    color_maps: Float[Tensor, "N C C"]
    keys: Int[Tensor, " N"]
    exact: Bool[Tensor, " N"]
    age: Int[Tensor, " N"]

    def __init__(self, *, capacity: int, feature_dim: int, max_grid_size: int, num_colors: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.num_colors = num_colors
        self.max_grid_size = max_grid_size
        self._slot_of: dict[int, int] = {}
        grid = (capacity, max_grid_size, max_grid_size)
        self.register_buffer("features", torch.zeros(capacity, feature_dim))
        self.register_buffer("outcomes", torch.full(grid, OUTSIDE, dtype=torch.int8))
        self.register_buffer("color_maps", torch.zeros(capacity, num_colors, num_colors))
        self.register_buffer("keys", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("exact", torch.zeros(capacity, dtype=torch.bool))
        self.register_buffer("age", torch.zeros(capacity, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self._slot_of)

    @torch.no_grad()
    def add(
        self,
        *,
        ids: Sequence[str],
        features: Float[Tensor, "B D"],
        queries: Int[Tensor, "B H W"],
        outcomes: Int[Tensor, "B H W"],
        exact: Bool[Tensor, " B"],
        step: int,
    ) -> None:
        """Remember B solved problems: what was asked, the right outcome, whether it was found exactly, and when."""
        # A row may replace an earlier one of the same batch: a slot goes to the last row that took it.
        taken = [(self._take_slot(key, exact[row], step), row) for row, key in enumerate(query_keys(ids).tolist())]
        row_of = {slot: row for slot, row in taken if slot is not None}
        if not row_of:
            return
        slots, rows = (torch.tensor(list(each), device=self.features.device) for each in (row_of, row_of.values()))
        queries, outcomes = queries[rows], outcomes[rows]
        height, width = (min(side, self.max_grid_size) for side in outcomes.shape[1:])
        self.features[slots] = F.normalize(features[rows].float(), dim=-1)
        self.outcomes[slots] = OUTSIDE
        self.outcomes[slots, :height, :width] = outcomes[:, :height, :width].to(torch.int8)
        self.color_maps[slots] = color_map(queries, outcomes, self.num_colors)

    def _take_slot(self, key: int, exact: Bool[Tensor, ""], step: int) -> int | None:
        """The slot for a problem; none if it would replace one that was solved exactly and was not itself."""
        slot = self._slot_of.get(key, len(self))
        if slot == self.capacity:
            # Success outweighs any age.
            slot = int((self.age + self.exact.long() * torch.iinfo(torch.int32).max).argmin())
            if self.exact[slot] and not exact:
                return None
            del self._slot_of[int(self.keys[slot])]
            self.exact[slot] = False
        self._slot_of[key] = slot
        self.keys[slot], self.age[slot] = key, step
        self.exact[slot] |= exact  # Solved once is solved.
        return slot

    @torch.no_grad()
    def recall(
        self, features: Float[Tensor, "B D"], ids: Sequence[str], *, k: int, height: int, width: int
    ) -> Neighbors:
        """The k entries nearest to each query by cosine. A query never recalls itself: its answer is its target."""
        used = len(self)
        similarity = F.normalize(features.float(), dim=-1) @ self.features[:used].T  # [B, used]
        own = query_keys(ids).to(features.device)[:, None] == self.keys[:used]
        similarity = similarity.masked_fill(own, -torch.inf)
        similarity = F.pad(similarity, (0, max(0, k - used)), value=-torch.inf)
        similarity, slots = similarity.topk(k)
        found = similarity > -torch.inf
        slots = slots.where(found, 0)
        height, width = min(height, self.max_grid_size), min(width, self.max_grid_size)
        return Neighbors(
            similarity=similarity.where(found, 0.0),
            found=found,
            features=self.features[slots],
            outcomes=self.outcomes[slots, :height, :width].long(),
            color_maps=self.color_maps[slots],
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # Only the slots in use: an empty memory takes no room in a checkpoint.
        for name in _FIELDS:
            field = getattr(self, name)[: len(self)]
            destination[prefix + name] = field if keep_vars else field.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        _, _, missing, unexpected, errors = others
        unexpected.extend(key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in _FIELDS)
        absent = [prefix + name for name in _FIELDS if prefix + name not in state_dict]
        missing.extend(absent)
        if absent:
            return
        used = len(state_dict[prefix + "keys"])
        if used > self.capacity:
            errors.append(f"{prefix}keys holds {used} solved problems, over solver.capacity = {self.capacity}.")
            return
        for name in _FIELDS:
            getattr(self, name)[:used] = state_dict[prefix + name]
        self._slot_of = {key: slot for slot, key in enumerate(self.keys[:used].tolist())}


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


@dataclass(frozen=True, kw_only=True, slots=True)
class SolvedQueries:
    """Queries, and which of them are worth remembering."""

    admitted: Bool[Tensor, " B"]
    positions: tuple[int, ...]
    """Place of each in its batch, which may be spread over processes."""
    features: Float[Tensor, "B D"]
    queries: Int[Tensor, "B H W"]
    outcomes: Int[Tensor, "B H W"]
    exact: Bool[Tensor, " B"]

    def packed(self, side: int) -> UInt8[Tensor, "n bytes"]:
        """The n admitted ones as rows of bytes, for other processes; their grids on a canvas of that side."""
        rows = self.admitted.nonzero().flatten()
        places = torch.tensor(self.positions, device=rows.device)[rows]
        grids = [fit_canvas(grid[rows], side, side).flatten(1).to(torch.int8) for grid in (self.queries, self.outcomes)]
        fields = (places[:, None], self.features[rows].float(), *grids, self.exact[rows, None])
        return torch.cat([field.contiguous().view(torch.uint8) for field in fields], dim=1)


class PermanentSolver(nn.Module):
    """Attention over the nearest solved problems.

    Each recalled problem makes two suggestions, weighed by a learned gate: its own outcome, cell by cell, and its
    colour map applied to the query. A learned null entry, which suggests the query itself, means "none fits".

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
        self.to_query = nn.Linear(feature_dim, _MATCH_DIM)
        self.to_key = nn.Linear(feature_dim, _MATCH_DIM)
        self.null_key = nn.Parameter(torch.zeros(_MATCH_DIM))
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
            return self._propose(F.normalize(features.float(), dim=-1), inputs, ids)

    def _propose(self, features: Float[Tensor, "B D"], inputs: QueryInputs, ids: Sequence[str]) -> Proposal:
        batch, height, width = inputs.query.shape
        recalled = self.memory.recall(features, ids, k=self.top_k, height=height, width=width)

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
        candidate = suggested[..., :-1] + turned + attention[:, -1, None, None, None] * colors + _CANDIDATE_FLOOR

        evidence = torch.cat([features, recalled.similarity, attention[:, -1:]], dim=-1)
        return Proposal(
            candidate=(candidate / candidate.sum(-1, keepdim=True)).log(),
            confidence_logit=self.confidence(evidence).squeeze(-1),
        )

    def remember_packed(self, rows: UInt8[Tensor, "n bytes"], ids: Sequence[str], step: int) -> None:
        """Add solved problems, as processes have packed them, to the memory in the order of the batch.

        Args:
            rows: of all processes, `SolvedQueries.packed` on a canvas of the memory's `max_grid_size`.
            ids: of the whole batch.
            step: of the run.
        """
        side = self.memory.max_grid_size
        width = 4 * self.memory.features.shape[1]
        place, features, queries, outcomes, exact = rows.split([8, width, side * side, side * side, 1], dim=1)
        places = place.flatten().view(torch.int64)
        # Several views of a query have one place: in the order of their packing, so that the same one is kept anywhere.
        order = places.argsort(stable=True)
        self.memory.add(
            ids=[ids[index] for index in places[order].tolist()],
            features=features.flatten().view(torch.float32).unflatten(0, (len(order), -1))[order],
            queries=queries.view(torch.int8).unflatten(1, (side, side)).long()[order],
            outcomes=outcomes.view(torch.int8).unflatten(1, (side, side)).long()[order],
            exact=exact.flatten().bool()[order],
            step=step,
        )

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
