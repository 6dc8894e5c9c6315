from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from arcdist.data import OUTSIDE, Collator, Pair, Query, QueryBatch, QueryInputs, embedded_tokenizer

Size = tuple[int, int]
PairSizes = tuple[Size, Size]

TASK_ROWS = {"a": 0, "b": 1, "c": 2}
# Task, sizes of the context pairs, size of the query's input. Their working areas are 3 x 3, 4 x 8, 7 x 3.
MIXED: tuple[tuple[str, tuple[PairSizes, ...], Size], ...] = (
    ("a", (((3, 3), (3, 3)),), (3, 3)),
    ("b", (((2, 4), (4, 8)), ((1, 2), (2, 4)), ((2, 2), (4, 4))), (2, 3)),
    ("unknown", (((5, 2), (1, 1)), ((6, 3), (1, 2))), (7, 1)),
)


@pytest.fixture(scope="session")
def make_query() -> Callable[..., Query]:
    """A query with grids of random colours and of the sizes that are asked for."""

    def make(task: str, pairs: Sequence[PairSizes], asked: Size, *, index: int = 0, seed: int = 0) -> Query:
        rng = np.random.default_rng([seed, index, *task.encode()])

        def grid(size: Size) -> np.ndarray:
            return rng.integers(0, 10, size, dtype=np.uint8)

        context = tuple(Pair(grid(before), grid(after)) for before, after in pairs)
        return Query(f"{task}:train:{index}", task, context, grid(asked), grid(asked))

    return make


@pytest.fixture(scope="session")
def collate() -> Callable[..., QueryBatch]:
    """Queries to a batch, as training does it, without augmentation; tasks a, b and c are known."""
    collator = Collator(embedded_tokenizer(), task_rows=TASK_ROWS)
    return lambda *queries: collator(queries)


@pytest.fixture(scope="session")
def mixed_queries(make_query) -> list[Query]:
    """Three queries of different sizes, the last of an unknown task."""
    return [make_query(*each) for each in MIXED]


@pytest.fixture(scope="session")
def mixed(collate, mixed_queries) -> QueryInputs:
    """What the models see of the three queries together."""
    return collate(*mixed_queries).inputs


@pytest.fixture(scope="session")
def enlarged() -> Callable[..., QueryInputs]:
    """The same queries on a canvas that is `margin` wider and higher, with `pairs` more (absent) context pairs."""

    def enlarge(inputs: QueryInputs, *, margin: int, pairs: int) -> QueryInputs:
        canvas = (0, margin, 0, margin)
        return replace(
            inputs,
            query=F.pad(inputs.query, canvas, value=OUTSIDE),
            context_inputs=F.pad(inputs.context_inputs, (*canvas, 0, pairs), value=OUTSIDE),
            context_outputs=F.pad(inputs.context_outputs, (*canvas, 0, pairs), value=OUTSIDE),
            context_sizes=F.pad(inputs.context_sizes, (0, 0, 0, 0, 0, pairs)),
        )

    return enlarge


@pytest.fixture(scope="session")
def shaken() -> Callable[[nn.Module], nn.Module]:
    """Move every parameter away from its first value, so that no zero or identity hides an effect."""

    def shake(module: nn.Module, scale: float = 0.2) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
            for part in module.modules():
                if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                    part.weight[part.padding_idx] = 0.0
        return module

    return shake
