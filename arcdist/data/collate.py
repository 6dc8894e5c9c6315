"""Queries become the tensors of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, UInt8
from torch import Tensor

from arcdist.data.augment import Augmentation, draw_augmentations
from arcdist.data.batch import OUTSIDE, QueryBatch, QueryInputs, QueryTargets, stack_grids, working_area
from arcdist.data.features import color_shares, pair_features
from arcdist.data.queries import Query
from arcdist.data.tasks import MAX_SIDE
from arcdist.data.text import GridTokenizer
from arcdist.rng import stream

# N queries, V views of each, B = N V views, K context pairs (padded), M real context pairs, H W canvas, L tokens.


@dataclass(frozen=True, eq=False, slots=True)
class Collator:
    """Turns queries into a `QueryBatch`, each seen under the augmentations that its id has in that epoch."""

    tokenizer: GridTokenizer
    _: KW_ONLY
    task_rows: Mapping[str, int]
    """Row of each training task; other tasks get -1."""
    seed: int = 0
    """Seed of the augmentations."""
    dihedral: bool = False
    """Whether to draw one of the 8 symmetries of the square."""
    colors: bool = False
    """Whether to draw a permutation of the colours 1 to 9."""
    order: bool = False
    """Whether to draw an order of the context pairs."""
    max_grid_size: int = MAX_SIDE
    """Longest side of a working area."""
    views: int = 1
    """Augmentations to draw for a query; their symmetries differ, up to 8."""
    reads_views: bool = True
    """Whether Qwen reads the view that the agent sees; else the query in its own form, once for all its views."""
    unknown_share: float = 0.0
    """Share of the queries whose task is given as unknown, all views of one alike."""
    dropout: bool = False
    """Whether each view gets a seed for what the agent drops."""

    def __call__(self, queries: Sequence[Query], epoch: int = 0) -> QueryBatch:
        """Augment and collate queries as they are seen in an epoch."""
        batch = self.collate(queries, [view for query in queries for view in self.draw(query, epoch)])
        changes: dict[str, Tensor] = {}
        if self.unknown_share:
            draws = torch.tensor([stream(self.seed, "unknown_task", epoch, query.id).random() for query in queries])
            known = batch.inputs.of_views(draws) >= self.unknown_share
            changes["task_index"] = batch.inputs.task_index.where(known, -1)
        if self.dropout:
            streams = (stream(self.seed, "agent_dropout", epoch, query.id) for query in queries)
            seeds = [rng.integers(1, 2**63 - 1, size=self.views) for rng in streams]
            changes["dropout_seed"] = torch.from_numpy(np.concatenate(seeds))
        return replace(batch, inputs=replace(batch.inputs, **changes))

    def collate(
        self, queries: Sequence[Query], augmentations: Sequence[Augmentation], *, tell_symmetry: bool = True
    ) -> QueryBatch:
        """Collate queries, each as it is seen under its augmentations, as many for one as for another.

        Without `tell_symmetry` the models are told of none, as those that were trained without any need it.

        Args:
            queries: N of them.
            augmentations: those of the first query, then those of the second, and so on.
            tell_symmetry: whether the agent is told which symmetry it sees a query under.

        Raises:
            ValueError: the augmentations are not as many for each, or Qwen is to read several views of a query.
        """
        views, rest = divmod(len(augmentations), len(queries))
        if rest or not views or (self.reads_views and views != 1):
            raise ValueError(f"collate was given {len(augmentations)} augmentations for {len(queries)} queries")
        each = [query for query in queries for _ in range(views)]
        seen = [augmentation.apply_query(query) for augmentation, query in zip(augmentations, each, strict=True)]
        read = seen if self.reads_views else queries
        stacked = _Stacked.of(seen, self.max_grid_size)
        target, target_size = _targets([query.target for query in seen])
        written, written_size = (target, target_size) if read is seen else _targets([query.target for query in read])
        tokens, token_mask = self._tokens(read)
        features, summary = (stacked if read is seen else _Stacked.of(read, self.max_grid_size)).numbers()
        inputs = QueryInputs(
            query=_integers(stacked.query),
            query_size=_integers(stacked.query_size),
            working_area=_integers(stacked.areas),
            context_inputs=_integers(_padded(stacked.inputs, stacked.real, OUTSIDE)),
            context_outputs=_integers(_padded(stacked.outputs, stacked.real, OUTSIDE)),
            context_sizes=_integers(_padded(stacked.sizes, stacked.real, 0)),
            tokens=tokens,
            token_mask=token_mask,
            features=torch.from_numpy(features.astype(np.float32)),
            summary=torch.from_numpy(summary.astype(np.float32)),
            task_index=torch.tensor([self.task_rows.get(query.task_id, -1) for query in each]),
            dihedral=torch.tensor([augmentation.dihedral * tell_symmetry for augmentation in augmentations]),
            dropout_seed=torch.zeros(len(each), dtype=torch.int64),
        )
        return QueryBatch(
            ids=tuple(query.id for query in queries),
            inputs=inputs,
            targets=QueryTargets(target=target, target_size=target_size, written=written, written_size=written_size),
        )

    def draw(self, query: Query, epoch: int = 0) -> list[Augmentation]:
        """Give the augmentations that a query is seen under in an epoch."""
        return draw_augmentations(
            stream(self.seed, "augment", epoch, query.id),
            self.views,
            dihedral=self.dihedral,
            colors=self.colors,
            order=self.order,
            num_pairs=len(query.context),
        )

    def _tokens(self, queries: Sequence[Query]) -> tuple[Int[Tensor, "N L"], Bool[Tensor, "N L"]]:
        texts = [self.tokenizer.encode(query.context, query.input) for query in queries]
        lengths = np.array([len(text) for text in texts])
        token_mask = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.full(token_mask.shape, self.tokenizer.pad_id, dtype=np.int64)
        tokens[token_mask] = np.concatenate(texts)
        return torch.from_numpy(tokens), torch.from_numpy(token_mask)


@dataclass(frozen=True, eq=False, slots=True)
class _Stacked:
    """The grids of B queries, or views of queries, on canvases of one size."""

    areas: Int[np.ndarray, "B 2"]
    query: Int[np.ndarray, "B H W"]
    query_size: Int[np.ndarray, "B 2"]
    real: Bool[np.ndarray, "B K"]
    inputs: Int[np.ndarray, "M H W"]
    outputs: Int[np.ndarray, "M H W"]
    sizes: Int[np.ndarray, "M 2 2"]

    @classmethod
    def of(cls, queries: Sequence[Query], max_grid_size: int) -> "_Stacked":
        areas = np.array([working_area(query.context, query.input, max_grid_size) for query in queries])
        height, width = (int(side) for side in areas.max(axis=0))
        num_pairs = np.array([len(query.context) for query in queries])
        pairs = [pair for query in queries for pair in query.context]
        return cls(
            areas=areas,
            query=stack_grids([query.input for query in queries], height, width),
            query_size=np.array([query.input.shape for query in queries]),
            real=np.arange(num_pairs.max()) < num_pairs[:, None],
            inputs=stack_grids([pair.input for pair in pairs], height, width),
            outputs=stack_grids([pair.output for pair in pairs if pair.output is not None], height, width),
            sizes=np.array([[grid.shape for grid in pair.grids()] for pair in pairs]),
        )

    def numbers(self) -> tuple[Float64[np.ndarray, "B F"], Float64[np.ndarray, "B S"]]:
        """The transformation features, and the summary of the grids."""
        num_pairs = self.real.sum(axis=1)
        starts = np.concatenate([[0], np.cumsum(num_pairs)[:-1]])
        per_pair = (
            pair_features(self.inputs, self.outputs, self.sizes),
            color_shares(self.inputs),
            color_shares(self.outputs),
        )
        features, shares_in, shares_out = (_means(values, starts, num_pairs) for values in per_pair)
        sides = self.query_size / MAX_SIDE
        return features, np.concatenate([color_shares(self.query), shares_in, shares_out, sides], axis=1)


def _targets(targets: Sequence[UInt8[np.ndarray, "_ _"] | None]) -> tuple[Int[Tensor, "B h w"], Int[Tensor, "B 2"]]:
    sizes = np.array([(0, 0) if target is None else target.shape for target in targets])
    height, width = (max(int(side), 1) for side in sizes.max(axis=0))
    canvas = np.full((len(targets), height, width), OUTSIDE, dtype=np.int8)
    known = np.array([target is not None for target in targets])
    canvas[known] = stack_grids([target for target in targets if target is not None], height, width)
    return _integers(canvas), _integers(sizes)


def _means(
    values: Float64[np.ndarray, "M F"], starts: Int[np.ndarray, " B"], num_pairs: Int[np.ndarray, " B"]
) -> Float64[np.ndarray, "B F"]:
    # Each query's pairs are added up one after the other, so that the other queries cannot change a bit of its mean.
    means: Float64[np.ndarray, "B F"] = np.add.reduceat(values, starts, axis=0) / num_pairs[:, None]
    return means


def _padded(values: np.ndarray, real: Bool[np.ndarray, "B K"], padding: int) -> np.ndarray:
    padded = np.full(real.shape + values.shape[1:], padding, dtype=values.dtype)
    padded[real] = values
    return padded


def _integers(values: np.ndarray) -> Int[Tensor, "..."]:
    return torch.from_numpy(values).long()
