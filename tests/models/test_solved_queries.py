"""Solved queries on their way from one process to the memories of all."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arcdist.data import OUTSIDE
from arcdist.models import PermanentSolver, SolvedQueries

PROMPT, SIDE, QUERIES = 8, 6, 7
IDS = tuple(f"task{index}:train:0" for index in range(QUERIES))


def make_solver(capacity=16):
    return PermanentSolver(capacity=capacity, feature_dim=PROMPT, top_k=2, max_grid_size=SIDE)


def grids(height, width, seed):
    """Grids of all colours, the last row outside."""
    grid = torch.randint(0, 10, (QUERIES, height, width), generator=torch.Generator().manual_seed(seed))
    grid[:, -1] = OUTSIDE
    return grid


FEATURES = torch.randn(QUERIES, PROMPT, generator=torch.Generator().manual_seed(0))
ASKED, OUTCOMES = grids(4, 5, seed=1), grids(4, 5, seed=2)
EXACT = torch.tensor([True, False, True, False, False, True, False])


def share(positions, admitted):
    rows = torch.tensor(positions)
    return SolvedQueries(
        admitted=torch.tensor([place in admitted for place in positions]),
        positions=tuple(positions),
        features=FEATURES[rows],
        queries=ASKED[rows],
        outcomes=OUTCOMES[rows],
        exact=EXACT[rows],
    )


def memory_of(shares, admitted, solver=None, step=3):
    solver = solver or make_solver()
    packed = torch.cat([share(positions, admitted).packed(SIDE) for positions in shares])
    if len(packed):
        solver.remember_packed(packed, IDS, step)
    return solver


def state(solver):
    return {name: value.clone() for name, value in solver.memory.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_it_is_what_the_solver_would_remember_of_the_whole_batch():
    admitted = [0, 2, 3, 6]
    ours = memory_of([(1, 3, 5), (0, 2, 4, 6)], admitted)
    expected = make_solver()
    expected.remember(
        ids=[IDS[place] for place in admitted],
        features=FEATURES[admitted],
        queries=ASKED[admitted],
        outcomes=OUTCOMES[admitted],
        exact=EXACT[admitted],
        step=3,
    )
    assert_same(state(ours), state(expected))
    assert len(ours.memory) == 4
    assert ours.memory.exact[:4].tolist() == [True, True, False, False]
    assert (ours.memory.age[:4] == 3).all()


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(range(QUERIES)),
    st.lists(st.integers(1, QUERIES - 1), max_size=3, unique=True).map(sorted),
    st.sets(st.integers(0, QUERIES - 1)),
)
def test_however_a_batch_is_dealt_its_memory_is_the_same(order, cuts, admitted):
    ends = [0, *cuts, QUERIES]
    shares = [sorted(order[start:end]) for start, end in pairwise(ends)]
    # A memory of four has to push out some.
    ours = memory_of(shares, admitted, make_solver(capacity=4))
    assert_same(state(ours), state(memory_of([range(QUERIES)], admitted, make_solver(capacity=4))))


@pytest.mark.parametrize("admitted", [[], [1]])
def test_what_is_not_admitted_leaves_no_trace(admitted):
    solver = memory_of([(0, 1, 2)], admitted)
    assert len(solver.memory) == len(admitted)


def test_a_row_of_bytes_holds_everything():
    packed = share((2, 5, 6), [2, 6]).packed(SIDE)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 8 + 4 * PROMPT + 2 * SIDE * SIDE + 1)
    place, features, query, _, exact = packed.split([8, 4 * PROMPT, SIDE * SIDE, SIDE * SIDE, 1], dim=1)
    assert place.contiguous().view(torch.int64).flatten().tolist() == [2, 6]
    assert torch.equal(features.contiguous().view(torch.float32), FEATURES[[2, 6]])
    assert torch.equal(query.contiguous().view(torch.int8).view(2, SIDE, SIDE)[:, :4, :5].long(), ASKED[[2, 6]])
    assert (query.contiguous().view(torch.int8).view(2, SIDE, SIDE)[:, 4:] == OUTSIDE).all()
    assert exact.tolist() == [[1], [0]]


def test_shares_may_have_canvases_of_their_own():
    wide, low = share((0, 1), [0, 1]), share((2,), [2])
    low = SolvedQueries(
        admitted=low.admitted,
        positions=low.positions,
        features=low.features,
        queries=low.queries[:, :3, :2],
        outcomes=low.outcomes[:, :3, :2],
        exact=low.exact,
    )
    solver = make_solver()
    solver.remember_packed(torch.cat([low.packed(SIDE), wide.packed(SIDE)]), IDS, 0)
    assert solver.memory.outcomes[2, :3, :2].tolist() == OUTCOMES[2, :3, :2].tolist()
    assert (solver.memory.outcomes[2, 3:] == OUTSIDE).all()
    assert (solver.memory.outcomes[2, :, 2:] == OUTSIDE).all()
    assert solver.memory.outcomes[1, :4, :5].tolist() == OUTCOMES[1].tolist()
