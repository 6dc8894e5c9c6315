"""Which candidates become the two attempts."""

import math

import pytest

from arcdist.evaluation.predict import Candidate
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


def test_qwens_score_shares_its_weight_out_by_probability():
    candidates = [
        Candidate(ONE, "agent", 0, -1.0),
        Candidate(TWO, "steps", 0, -1.0),
        Candidate(ONE, "qwen_score", 0, math.log(0.2) - 1000.0),
        Candidate(TWO, "qwen_score", 0, math.log(0.8) - 1000.0),
    ]
    weights = {"agent": 1.0, "steps": 0.5, "qwen_score": 1.0}
    first, second = vote(candidates, weights)
    assert (first.grid, second.grid) == (TWO, ONE)
    assert (first.score, second.score) == (pytest.approx(1.3), pytest.approx(1.2))
    assert grids(candidates, {"qwen_score": 1.0}) == [TWO, ONE]
    # It proposes nothing where others do.
    assert grids(candidates, {"agent": 1.0, "qwen_score": 5.0}) == [ONE]
