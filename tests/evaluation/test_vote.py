"""Which candidates become the two attempts."""

import math

import pytest

from arcdist.evaluation.predict import SCORES, Candidate
from arcdist.evaluation.vote import vote

ONE, TWO, WIDE = ((1,),), ((2,),), ((1, 1),)
WEIGHTS = {"agent": 1.0, "steps": 0.25}


def grids(candidates, weights=WEIGHTS):
    return [each.grid for each in vote(candidates, weights)]


def test_the_grid_with_most_votes_is_first():
    candidates = [
        Candidate(ONE, "agent", 0, -0.1),
        Candidate(TWO, "agent", 1, -5.0),
        Candidate(TWO, "agent", 2, -6.0),
        Candidate(WIDE, "steps", 0, -0.1),
    ]
    first, second, third = vote(candidates, WEIGHTS)
    assert (first.grid, first.score, first.log_prob, first.origins) == (TWO, 2.0, -5.0, {"agent": 2})
    assert (second.grid, second.score, third.grid, third.score) == (ONE, 1.0, WIDE, 0.25)
    # The highest log-probability, a cell.
    assert third.log_prob == -0.05


def test_votes_have_their_origins_weights():
    candidates = [Candidate(ONE, "agent", 0, -9.0)] + [Candidate(TWO, "steps", view, -1.0) for view in range(3)]
    assert grids(candidates) == [ONE, TWO]
    assert grids(candidates, {"agent": 1.0, "steps": 0.5}) == [TWO, ONE]
    assert grids(candidates, {"agent": 1.0}) == [ONE]
    assert grids(candidates, {}) == []


def test_among_equals_the_likelier_cell_is_first_and_then_the_earlier_candidate():
    assert grids([Candidate(ONE, "agent", 0, -2.0), Candidate(WIDE, "agent", 1, -3.0)]) == [WIDE, ONE]
    assert grids([Candidate(ONE, "agent", 0, -2.0), Candidate(TWO, "agent", 1, -2.0)]) == [ONE, TWO]
    assert grids([Candidate(TWO, "agent", 1, -2.0), Candidate(ONE, "agent", 0, -2.0)]) == [TWO, ONE]


@pytest.mark.parametrize("score", SCORES)
def test_a_score_shares_its_weight_out_by_probability(score):
    candidates = [
        Candidate(ONE, "agent", 0, -1.0),
        Candidate(TWO, "steps", 0, -1.0),
        Candidate(ONE, score, 0, math.log(0.2) - 1000.0),
        Candidate(TWO, score, 0, math.log(0.8) - 1000.0),
    ]
    weights = {"agent": 1.0, "steps": 0.5, score: 1.0}
    first, second = vote(candidates, weights)
    assert (first.grid, second.grid) == (TWO, ONE)
    assert (first.score, second.score) == (pytest.approx(1.3), pytest.approx(1.2))
    assert grids(candidates, {score: 1.0}) == [TWO, ONE]
    # It proposes nothing where others do.
    assert grids(candidates, {"agent": 1.0, score: 5.0}) == [ONE]


def test_each_score_has_its_own_share():
    scored = [
        ("agent_score", ONE, 0.9),
        ("agent_score", TWO, 0.1),
        ("qwen_score", ONE, 0.25),
        ("qwen_score", TWO, 0.75),
    ]
    candidates = [Candidate(grid, "agent", 0, -1.0) for grid in (ONE, TWO)]
    candidates += [Candidate(grid, score, 0, math.log(share) - 50.0) for score, grid, share in scored]
    first, second = vote(candidates, {"agent": 1.0, "agent_score": 2.0, "qwen_score": 4.0})
    assert (first.grid, first.score) == (TWO, pytest.approx(1.0 + 2.0 * 0.1 + 4.0 * 0.75))
    assert (second.grid, second.score) == (ONE, pytest.approx(1.0 + 2.0 * 0.9 + 4.0 * 0.25))


def test_scores_alone_rank_what_each_of_them_has():
    candidates = [
        Candidate(ONE, "agent_score", 0, -1.0),
        Candidate(TWO, "agent_score", 0, -2.0),
        Candidate(ONE, "qwen_score", 0, -9.0),
    ]
    first, second = vote(candidates, {"agent_score": 1.0, "qwen_score": 1.0})
    assert (first.grid, first.origins) == (ONE, {"agent_score": 1, "qwen_score": 1})
    assert (second.grid, second.origins) == (TWO, {"agent_score": 1})
