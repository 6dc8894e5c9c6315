"""Who leads, by how much, on which queries; and how it is said."""

import pytest
from shared.made_records import answers, made_record

from arcdist.analysis.pairwise import rank, rankings, verdict_sentences
from arcdist.analysis.scores import letter_runs


def ranking_of(*records, moment="last"):
    return rank(letter_runs(records), moment)


def said_of(*records):
    runs = letter_runs(records)
    return verdict_sentences(*rankings(runs))


def test_the_leader_meets_the_closest_rival_first():
    ranking = ranking_of(
        made_record("low", exact=[answers("1000000000")]),
        made_record("high", exact=[answers("1111111100")]),
        made_record("middle", exact=[answers("1111100001")]),
    )
    first, second = ranking.contests
    assert (first.leader.letters, first.rival.letters, second.rival.letters) == ("B", "C", "A")
    assert (first.leader_exact, first.rival_exact) == (0.8, 0.6)
    assert first.difference == pytest.approx(0.2)
    assert (first.queries, first.tasks, first.differing, second.differing) == (10, 10, 4, 7)
    assert second.clear
    assert not first.clear


def test_queries_of_a_task_count_singly_but_are_one_task():
    both = {"a:test:0": True, "a:test:1": False, "b:test:0": True}
    none = dict.fromkeys(both, False)
    (contest,) = ranking_of(made_record("x", exact=[both]), made_record("y", exact=[none])).contests
    assert (contest.queries, contest.tasks, contest.differing) == (3, 2, 2)
    assert contest.leader_exact == pytest.approx(2 / 3)


def test_only_queries_that_all_were_asked_are_compared():
    first = made_record("x", exact=[answers("1100")])
    second = made_record("y", exact=[answers("0111", first=2)])
    ranking = ranking_of(first, second)
    (contest,) = ranking.contests
    # Common are the third and fourth task: x solves neither, y the second of them.
    assert (contest.leader.letters, contest.queries, ranking.asked) == ("B", 2, 6)
    assert (contest.leader_exact, contest.rival_exact) == (0.5, 0.0)
    assert "Compared are the 2 queries that all were asked, of 6." in said_of(first, second)


def test_a_run_asked_other_queries_stands_apart():
    runs = (
        made_record("x", exact=[answers("1100")]),
        made_record("other", exact=[answers("1111", first=100)]),
        made_record("y", exact=[answers("0100")]),
    )
    ranking = ranking_of(*runs)
    assert [side.letters for side in ranking.apart] == ["B"]
    assert [contest.rival.letters for contest in ranking.contests] == ["C"]
    assert said_of(*runs)[-1] == "B (other) was asked other queries and stands outside the verdict."


def test_runs_with_nothing_in_common_get_no_verdict():
    runs = (made_record("x", exact=[answers("11")]), made_record("y", exact=[answers("11", first=50)]))
    assert ranking_of(*runs).contests == ()
    assert said_of(*runs) == ("No verdict is possible: the runs were not scored on the same queries.",)


def test_a_run_without_validation_stands_outside():
    assert said_of(made_record("x", exact=[answers("11")]), made_record("y")) == (
        "No verdict is possible: it takes two runs that have been validated query by query.",
        "B (y) has no validation by queries and stands outside the verdict.",
    )


def test_a_group_is_compared_by_its_mean():
    runs = (
        made_record("seed 0", group="base", exact=[answers("1100")]),
        made_record("seed 1", group="base", exact=[answers("1000")]),
        made_record("other", exact=[answers("0001")]),
    )
    (contest,) = ranking_of(*runs).contests
    assert (contest.leader.letters, contest.rival.letters) == ("A B", "C")
    assert (contest.leader_exact, contest.rival_exact, contest.differing) == (0.375, 0.25, 3)
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


def test_a_difference_beyond_the_noise_is_said_to_be_one():
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
    (contest,) = ranking_of(ahead, behind).contests
    assert contest.low > 0
    assert contest.clear is clear
    few = "They differ in 5 tasks only: fewer than 6 prove nothing."
    assert (few in said_of(ahead, behind)) is not clear


def test_the_best_validations_are_told_where_they_say_something_else():
    fell = made_record("fell", exact=[answers("1" * 15 + "0" * 5), answers("0" * 20)], best=0)
    steady = made_record("steady", exact=[answers("1" * 10 + "0" * 10)])
    runs = letter_runs([fell, steady])
    last, best = rankings(runs)
    assert last.contests[0].leader.letters == "B"
    assert (best.contests[0].leader.letters, best.contests[0].leader_exact) == ("A", 0.75)
    said = verdict_sentences(last, best)[-1]
    low, high = best.contests[0].low, best.contests[0].high
    assert said == (
        f"At the best validation of each run: A (fell) is ahead of B (steady) by 25.00 points "
        f"({100 * low:+.2f} to {100 * high:+.2f} points), within the noise."
    )
