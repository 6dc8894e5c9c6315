"""Right cells by planning step, by hand."""

import pytest

from arcdist.report.planning import planning_scores
from arcdist.tracking.validation import ShownQuery

TARGET = ((1, 2), (3, 4))


def query(*steps, prediction):
    return ShownQuery(id="a:test:0", input=((0,),), target=TARGET, steps=steps, prediction=prediction)


def test_shares_are_means_over_queries():
    scores = planning_scores(
        [query(((0, 2), (0, 0)), ((1, 2), (3, 0)), prediction=TARGET), query(((1, 2),), TARGET, prediction=((1, 0),))]
    )
    assert [(score.after, score.exact, score.queries) for score in scores] == [
        ("step 1", 0, 2), ("step 2", 1, 2), ("the last step, with the solver's memory", 1, 2)
    ]  # fmt: skip
    assert [score.cell for score in scores] == pytest.approx([(1 / 4 + 2 / 4) / 2, (3 / 4 + 1) / 2, (1 + 1 / 4) / 2])


def test_nothing_shown_nothing_scored():
    assert planning_scores([]) == []
