"""The interval against cases in which it is known, and against SciPy's."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from arcdist.analysis.scores import paired_interval


def column(*numbers):
    return np.array(numbers, dtype=float)[:, None]


def test_of_one_side_that_solves_nothing_it_is_the_binomial_s():
    # The share of 100 drawn tasks that are among the 30 solved ones: Binomial(100, 0.3) / 100.
    first, second = column(*[1] * 30, *[0] * 70), np.zeros((100, 1))
    expected = stats.binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert expected.tolist() == [0.21, 0.39]
    assert np.allclose(paired_interval(first, second, np.ones(100)), expected, atol=0.0101)


def test_it_agrees_with_scipy_s():
    random = np.random.default_rng(0)
    first, second = (random.random((200, 1)) < 0.4).astype(float), (random.random((200, 1)) < 0.3).astype(float)
    expected = stats.bootstrap(
        ((first - second)[:, 0],), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert np.allclose(paired_interval(first, second, np.ones(200)), expected, atol=0.0101)


def test_it_is_the_same_each_time_and_in_any_order_of_tasks():
    random = np.random.default_rng(2)
    queries = random.integers(1, 4, 50).astype(float)
    first, second = (random.integers(0, queries + 1)[:, None].astype(float) for _ in range(2))
    once = paired_interval(first, second, queries)
    order = random.permutation(50)
    assert paired_interval(first, second, queries) == once
    assert paired_interval(first[order], second[order], queries[order]) == once


def test_queries_of_a_task_are_drawn_together():
    # Two queries that are always answered alike say no more than one.
    first, second = column(*[1] * 12, *[0] * 28), column(*[0] * 20, *[1] * 4, *[0] * 16)
    assert paired_interval(2 * first, 2 * second, np.full(40, 2.0)) == paired_interval(first, second, np.ones(40))


def test_sides_that_solve_the_same_do_not_differ():
    same = column(*[1, 0] * 20)
    assert paired_interval(same, same, np.ones(40)) == (0.0, 0.0)


def test_what_seeds_differ_in_is_in_the_interval():
    # One seed solves all, the other none: a quarter of the draws take one of them twice.
    first, second = np.tile([1.0, 0.0], (30, 1)), np.zeros((30, 1))
    assert paired_interval(first, second, np.ones(30)) == (0.0, 1.0)
    # Seeds that agree leave the tasks' chance only.
    alike = np.tile(column(*[1] * 15, *[0] * 15), (1, 3))
    assert np.allclose(
        paired_interval(alike, second, np.ones(30)), stats.binom.ppf([0.025, 0.975], 30, 0.5) / 30, atol=0.034
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12))
def test_it_lies_between_minus_one_and_one(tasks):
    solved = np.array(tasks, dtype=float)
    low, high = paired_interval(solved[:, :1], solved[:, 1:], np.full(len(tasks), 2.0))
    assert -1 <= low <= high <= 1
