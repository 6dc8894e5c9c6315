"""Who leads, by how much, on which queries, and in which words; the interval in known cases, and against SciPy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from shared.made_records import answers, made_record

from arcdist.analysis.pairwise import paired_interval, puzzle_table, query_outcomes, rank, verdict_sentences
from arcdist.analysis.scores import letter_runs


def rows_of(table):
    return {row.key: row for row in table.rows}


def ranking_of(*records, moment="last"):
    return rank(letter_runs(records), moment)


def said_of(*records):
    runs = letter_runs(records)
    return verdict_sentences(rank(runs, "last"), rank(runs, "best"))


def test_the_leader_meets_the_closest_rival_first():
    ranking = ranking_of(
        made_record("low", exact=[answers("1000000000")]),
        made_record("high", exact=[answers("1111111100")]),
        made_record("middle", exact=[answers("1111100001")]),
    )
    first, second = ranking.results
    assert (first.leader.letters, first.rival.letters, second.rival.letters) == ("B", "C", "A")
    assert (first.leader_exact, first.rival_exact) == (0.8, 0.6)
    assert first.difference == pytest.approx(0.2)
    assert (first.queries, first.tasks, first.differing, second.differing) == (10, 10, 4, 7)
    assert second.clear
    assert not first.clear


def test_queries_of_a_task_count_singly_but_are_one_task():
    both = {"a:test:0": True, "a:test:1": False, "b:test:0": True}
    none = dict.fromkeys(both, False)
    (result,) = ranking_of(made_record("x", exact=[both]), made_record("y", exact=[none])).results
    assert (result.queries, result.tasks, result.differing) == (3, 2, 2)
    assert result.leader_exact == pytest.approx(2 / 3)


def test_only_queries_that_all_were_asked_are_compared():
    first = made_record("x", exact=[answers("1100")])
    second = made_record("y", exact=[answers("0111", first=2)])
    ranking = ranking_of(first, second)
    (result,) = ranking.results
    # Common are the third and fourth task: x solves neither, y the second of them.
    assert (result.leader.letters, result.queries, ranking.asked) == ("B", 2, 6)
    assert (result.leader_exact, result.rival_exact) == (0.5, 0.0)
    assert "Compared are the 2 queries that all were asked, of 6." in said_of(first, second)


def test_a_run_asked_other_queries_is_set_apart():
    runs = (
        made_record("x", exact=[answers("1100")]),
        made_record("other", exact=[answers("1111", first=100)]),
        made_record("y", exact=[answers("0100")]),
    )
    ranking = ranking_of(*runs)
    assert [group.letters for group in ranking.apart] == ["B"]
    assert [result.rival.letters for result in ranking.results] == ["C"]
    assert said_of(*runs)[-1] == "B (other) was asked other queries and is left out of the verdict."


def test_runs_with_nothing_in_common_get_no_verdict():
    runs = (made_record("x", exact=[answers("11")]), made_record("y", exact=[answers("11", first=50)]))
    assert ranking_of(*runs).results == ()
    assert said_of(*runs) == ("No verdict is possible: the runs were not scored on the same queries.",)


def test_a_run_without_validation_is_left_out():
    assert said_of(made_record("x", exact=[answers("11")]), made_record("y")) == (
        "No verdict is possible: it takes two runs that have been validated query by query.",
        "B (y) has no validation by queries and is left out of the verdict.",
    )


def test_a_group_is_compared_by_its_mean():
    runs = (
        made_record("seed 0", group="base", exact=[answers("1100")]),
        made_record("seed 1", group="base", exact=[answers("1000")]),
        made_record("other", exact=[answers("0001")]),
    )
    (result,) = ranking_of(*runs).results
    assert (result.leader.letters, result.rival.letters) == ("A B", "C")
    assert (result.leader_exact, result.rival_exact, result.differing) == (0.375, 0.25, 3)
    sentences = said_of(*runs)
    assert sentences[0] == (
        "The mean of A, B is ahead of C (other), but within the noise: 37.50 % against 25.00 % of 4 queries exact, "
        "12.50 points more."
    )
    assert sentences[2] == (
        "Runs of one recipe are compared by their mean; the interval takes in how their seeds differ."
    )


def test_of_a_single_group_the_seeds_are_compared():
    runs = [made_record(f"seed {seed}", group="base", exact=[answers("1100")]) for seed in range(2)]
    assert said_of(*runs) == (
        "A (seed 0) and B (seed 1) are level: each solves 50.00 % of the queries.",
        "The 95 % interval of the difference is +0.00 to +0.00 points (bootstrap over 4 tasks).",
        "The runs repeat one recipe with other seeds: a difference between them is that of seeds.",
    )


def test_a_difference_beyond_the_noise_is_called_one():
    better = made_record("better", exact=[answers("1" * 20 + "0" * 20)])
    worse = made_record("worse", exact=[answers("1" * 5 + "0" * 35)])
    sentences = said_of(worse, better)
    assert sentences[0] == (
        "B (better) is better than A (worse): 50.00 % against 12.50 % of 40 queries exact, 37.50 points more, "
        "which is beyond the noise."
    )
    assert sentences[-1] == "Another seed may change more: the interval knows one run of each."


@pytest.mark.parametrize(("differing", "clear"), [(5, False), (6, True)])
def test_fewer_than_six_tasks_prove_nothing(differing, clear):
    ahead = made_record("x", exact=[answers("1" * differing + "0" * 20)])
    behind = made_record("y", exact=[answers("0" * (differing + 20))])
    (result,) = ranking_of(ahead, behind).results
    assert result.low > 0
    assert result.clear is clear
    few = "They differ in 5 tasks only: fewer than 6 prove nothing."
    assert (few in said_of(ahead, behind)) is not clear


def test_the_best_validations_are_mentioned_if_they_say_something_else():
    fell = made_record("fell", exact=[answers("1" * 15 + "0" * 5), answers("0" * 20)], best=0)
    steady = made_record("steady", exact=[answers("1" * 10 + "0" * 10)])
    runs = letter_runs([fell, steady])
    last, best = rank(runs, "last"), rank(runs, "best")
    assert last.results[0].leader.letters == "B"
    assert (best.results[0].leader.letters, best.results[0].leader_exact) == ("A", 0.75)
    sentence = verdict_sentences(last, best)[-1]
    low, high = best.results[0].low, best.results[0].high
    assert sentence == (
        f"At the best validation of each run: A (fell) is ahead of B (steady) by 25.00 points "
        f"({100 * low:+.2f} to {100 * high:+.2f} points), within the noise."
    )


def test_puzzles_in_which_runs_differ_come_first():
    first = made_record("x", exact=[answers("11010"), answers("11000")], best=0)
    second = made_record("y", exact=[answers("10100")])
    runs = letter_runs([first, second, made_record("z")])
    assert [(outcome.id[:8], outcome.marks) for outcome in query_outcomes(runs)] == [
        ("00000001", ("●", "·", "–")),
        ("00000002", ("·", "●", "–")),
        ("00000000", ("●", "●", "–")),
        ("00000003", ("○", "·", "–")),
    ]
    table = puzzle_table(runs)
    assert rows_of(table)["solved"].values == [2, 2, None]
    assert rows_of(table)["only"].values == [1, 1, None]
    assert "all_but" not in rows_of(table)
    assert table.note == ("Of 5 queries asked of all at their last validations: 1 solved by all, 2 by some, 2 by none.")


def test_of_three_runs_the_puzzles_that_one_alone_missed_are_counted():
    runs = letter_runs([made_record(name, exact=[answers(name)]) for name in ("1100", "1010", "1011")])
    found = rows_of(puzzle_table(runs))
    assert found["solved"].values == [2, 2, 3]
    assert found["only"].values == [1, 0, 1]
    assert found["all_but"].values == [1, 0, 0]


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
