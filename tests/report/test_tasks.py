"""Hard tasks, queries newly solved and lost again, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.report.tasks import change, once_solved, task_results
from arcdist.tracking.validation import task_of


@pytest.fixture
def validations(make_validation):
    return (
        make_validation(0, {"a:test:0": 1.0, "a:test:1": 0.5, "b:test:0": 1.0, "c:test:0": 0.2}),
        make_validation(1, {"a:test:0": 0.9, "a:test:1": 1.0, "b:test:0": 1.0, "c:test:0": 0.3}),
        make_validation(2, {"a:test:0": 0.5, "a:test:1": 1.0, "b:test:0": 0.25, "c:test:0": 0.75}),
    )


def test_tasks_with_the_fewest_right_cells_come_first(validations):
    results = task_results(validations)
    assert [(task.task, task.cell) for task in results] == [("b", 0.25), ("a", 0.75), ("c", 0.75)]
    assert [(task.exact, task.queries, task.ever_exact) for task in results] == [
        (0, 1, True), (1, 2, True), (0, 1, False)
    ]  # fmt: skip


def test_what_the_last_validation_solves_and_what_it_lost(validations):
    first, before, last = validations
    assert (change(before, last).solved, change(before, last).lost) == ((), ("b:test:0",))
    assert (change(first, last).solved, change(first, last).lost) == (("a:test:1",), ("a:test:0", "b:test:0"))
    assert once_solved(validations) == ("a:test:0", "b:test:0")


def test_a_task_may_have_any_name():
    assert task_of("a:test:b:test:12") == "a:test:b"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_a_change_there_and_back_is_none(make_validation, outcomes):
    before, after = (
        make_validation(epoch, {f"{index}:test:0": float(pair[epoch]) for index, pair in enumerate(outcomes)})
        for epoch in (0, 1)
    )
    there, back = change(before, after), change(after, before)
    assert (there.solved, there.lost) == (back.lost, back.solved)
    assert len(there.solved) - len(there.lost) == sum(new - old for old, new in outcomes)
    assert once_solved((before, after)) == there.lost
