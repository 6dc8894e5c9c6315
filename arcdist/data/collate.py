"""Queries become the tensors of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, UInt8
from torch import Tensor

from arcdist.data.augment import Augmentation, draw_augmentation
from arcdist.data.batch import OUTSIDE, QueryBatch, QueryInputs, QueryTargets, stack_grids, working_area
from arcdist.data.features import color_shares, pair_features
from arcdist.data.queries import Query
from arcdist.data.tasks import MAX_SIDE
from arcdist.data.text import GridTokenizer
from arcdist.rng import stream

# B queries, K context pairs (padded), N real context pairs, H W canvas, L tokens.


@dataclass(frozen=True, eq=False, slots=True)
class Collator:
    """Turns queries into a `QueryBatch`, each seen under the augmentation that its id has in that epoch."""

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

    def __call__(self, queries: Sequence[Query], epoch: int = 0) -> QueryBatch:
        """Augment and collate queries as they are seen in an epoch."""
        return self.collate(queries, [self.draw(query, epoch) for query in queries])

    def collate(
        self, queries: Sequence[Query], augmentations: Sequence[Augmentation], *, tell_symmetry: bool = True
    ) -> QueryBatch:
        """Collate queries, each as it is seen under an augmentation.

        Without `tell_symmetry` the models are told of none, as those that were trained without any need it.
        """
        seen = [augmentation.apply_query(query) for augmentation, query in zip(augmentations, queries, strict=True)]
        return QueryBatch(
            ids=tuple(query.id for query in queries),
            inputs=self._inputs(seen, [augmentation.dihedral * tell_symmetry for augmentation in augmentations]),
            targets=_targets([query.target for query in seen]),
        )

    def draw(self, query: Query, epoch: int = 0) -> Augmentation:
        """Give the augmentation that a query is seen under in an epoch."""
        return draw_augmentation(
            stream(self.seed, "augment", epoch, query.id),
            dihedral=self.dihedral,
            colors=self.colors,
            order=self.order,
            num_pairs=len(query.context),
        )

    def _inputs(self, queries: Sequence[Query], dihedral: Sequence[int]) -> QueryInputs:
        areas = np.array([working_area(query.context, query.input, self.max_grid_size) for query in queries])
        height, width = (int(side) for side in areas.max(axis=0))
        query = stack_grids([query.input for query in queries], height, width)
        query_size = np.array([query.input.shape for query in queries])

        num_pairs = np.array([len(query.context) for query in queries])
        real = np.arange(num_pairs.max()) < num_pairs[:, None]  # [B, K]
        pairs = [pair for query in queries for pair in query.context]
        inputs = stack_grids([pair.input for pair in pairs], height, width)
        outputs = stack_grids([pair.output for pair in pairs if pair.output is not None], height, width)
        sizes = np.array([[grid.shape for grid in pair.grids()] for pair in pairs])

        starts = np.concatenate([[0], np.cumsum(num_pairs)[:-1]])
        features, shares_in, shares_out = (
            _means(values, starts, num_pairs)
            for values in (pair_features(inputs, outputs, sizes), color_shares(inputs), color_shares(outputs))
        )
        summary = np.concatenate([color_shares(query), shares_in, shares_out, query_size / MAX_SIDE], axis=1)
        tokens, token_mask = self._tokens(queries)
        return QueryInputs(
            query=_integers(query),
            query_size=_integers(query_size),
            working_area=_integers(areas),
            context_inputs=_integers(_padded(inputs, real, OUTSIDE)),
            context_outputs=_integers(_padded(outputs, real, OUTSIDE)),
            context_sizes=_integers(_padded(sizes, real, 0)),
            tokens=tokens,
            token_mask=token_mask,
            features=torch.from_numpy(features.astype(np.float32)),
            summary=torch.from_numpy(summary.astype(np.float32)),
            task_index=torch.tensor([self.task_rows.get(query.task_id, -1) for query in queries]),
            dihedral=torch.tensor(dihedral),
        )

    def _tokens(self, queries: Sequence[Query]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        texts = [self.tokenizer.encode(query.context, query.input) for query in queries]
        lengths = np.array([len(text) for text in texts])
        token_mask = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.full(token_mask.shape, self.tokenizer.pad_id, dtype=np.int64)
        tokens[token_mask] = np.concatenate(texts)
        return torch.from_numpy(tokens), torch.from_numpy(token_mask)


def _targets(targets: Sequence[UInt8[np.ndarray, "_ _"] | None]) -> QueryTargets:
    sizes = np.array([(0, 0) if target is None else target.shape for target in targets])
    height, width = (max(int(side), 1) for side in sizes.max(axis=0))
    canvas = np.full((len(targets), height, width), OUTSIDE, dtype=np.int8)
    known = np.array([target is not None for target in targets])
    canvas[known] = stack_grids([target for target in targets if target is not None], height, width)
    return QueryTargets(target=_integers(canvas), target_size=_integers(sizes))


def _means(
    values: Float64[np.ndarray, "N F"], starts: Int[np.ndarray, " B"], num_pairs: Int[np.ndarray, " B"]
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
