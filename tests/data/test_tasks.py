"""ARC tasks, and raw JSON that is none."""

import numpy as np
import pytest

from arcdist.data.tasks import Pair, parse_task, tasks_digest
from arcdist.errors import DataError

GRID = [[0, 1], [2, 3]]
PAIR = {"input": GRID, "output": [[9]]}


def task(train=(PAIR,), test=(PAIR,), **keys):
    return {"train": list(train), "test": list(test), **keys}


def with_input(grid):
    return task(train=[PAIR, {"input": grid, "output": GRID}])


def test_a_task_is_read():
    parsed = parse_task("ab", task(name="ignored"), "ab.json")
    (demonstration,) = parsed.demonstrations
    assert (parsed.id, parsed.source, len(parsed.tests)) == ("ab", "ab.json", 1)
    assert demonstration.input.dtype == np.uint8
    assert demonstration.input.tolist() == GRID
    assert demonstration.output.tolist() == [[9]]
    assert parsed.longest_side == 2


def test_grids_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        parse_task("ab", task(), "ab.json").tests[0].input[0, 0] = 5


@pytest.mark.parametrize("test_pair", [{"input": GRID}, {"input": GRID, "output": None}])
def test_a_test_output_may_be_unknown(test_pair):
    (pair,) = parse_task("ab", task(test=[test_pair]), "ab.json").tests
    assert pair.output is None
    assert [grid.tolist() for grid in pair.grids()] == [GRID]


def test_sides_of_30_are_accepted():
    assert parse_task("ab", with_input([[1] * 30] * 30), "ab.json").longest_side == 30


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "x.json: task ab is a list: write an object"),
        ({"train": [PAIR]}, 'x.json: task ab lacks the key "test" (its keys: "train"): add "test"'),
        ({"test": [PAIR]}, 'task ab lacks the key "train"'),
        (task(train=[]), "task ab has no demonstrations: give"),
        ({"train": {}, "test": []}, 'task ab has an object under "train": write a list of pairs'),
        (task(train=[PAIR, 7]), "task ab, train pair 1 is a number"),
        (task(train=[{"output": GRID}]), 'train pair 0 lacks the key "input"'),
        (task(train=[{"input": GRID}]), 'train pair 0 lacks the key "output"'),
        (task(test=[PAIR, {"input": []}]), "test pair 1, input is empty: a grid has 1 to 30 rows"),
        (with_input(None), "train pair 1, input is null: write a list of rows"),
        (with_input("12"), "train pair 1, input is a string"),
        (with_input([[]]), "train pair 1, input, row 0 is empty"),
        (with_input([[1, 2], 3]), "train pair 1, input, row 1 is a number: write a list of colours"),
        (with_input([[1, 2], [3]]), "input, row 1 has 1 colours, row 0 has 2: make all rows of a grid equally long"),
        (with_input([[1]] * 31), "train pair 1, input has 31 rows: a grid has 1 to 30 rows"),
        (with_input([[1] * 31]), "input, row 0 has 31 colours: a row has 1 to 30 colours"),
        (with_input([[1, 2], [3, 10]]), "input, row 1, column 1 holds 10: a colour is an integer from 0 to 9"),
        (with_input([[-1]]), "row 0, column 0 holds -1"),
        (with_input([[1, True]]), "row 0, column 1 holds True"),
        (with_input([[1.0]]), "row 0, column 0 holds 1.0"),
        (with_input([[0, "3"]]), "row 0, column 1 holds '3'"),
        (with_input([[0, None]]), "row 0, column 1 holds None"),
        (with_input([[0, [1]]]), "row 0, column 1 holds [1]"),
        (with_input([[10**5000]]), "row 0, column 0 holds a huge integer"),
        (task(train=[{"input": GRID, "output": [[1], []]}]), "train pair 0, output, row 1 is empty"),
    ],
)
def test_what_is_not_a_task_is_refused_with_its_place_and_the_remedy(raw, message):
    with pytest.raises(DataError) as refusal:
        parse_task("ab", raw, "x.json")
    assert message in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_digests_distinguish_pairs_by_content_and_shape():
    def digest(first, second):
        return Pair(np.array(first, np.uint8), None if second is None else np.array(second, np.uint8)).digest()

    pairs = [([[1, 2]], [[3]]), ([[1], [2]], [[3]]), ([[1, 2]], [[4]]), ([[3]], [[1, 2]]), ([[1, 2]], None)]
    assert len({digest(*pair) for pair in pairs}) == len(pairs)
    assert digest([[1, 2]], [[3]]) == digest([[1, 2]], [[3]])


def test_the_digest_of_tasks_knows_names_order_and_every_cell():
    def task(name, cell, test=True):
        pair = {"input": [[cell, 1]], "output": [[1]]}
        known = pair if test else {"input": [[cell, 1]]}
        return parse_task(name, {"train": [pair], "test": [known]}, "here")

    digest = tasks_digest([task("a", 0), task("b", 0)])
    pair = {"input": [[0, 1]], "output": [[1]]}
    elsewhere = parse_task("a", {"train": [pair], "test": [pair]}, "there")
    assert tasks_digest([elsewhere, task("b", 0)]) == digest
    others = [
        [task("b", 0), task("a", 0)],
        [task("a", 2), task("b", 0)],
        [task("a", 0, test=False), task("b", 0)],
        [task("c", 0), task("b", 0)],
        [task("a", 0)],
    ]
    assert len({digest, *map(tasks_digest, others)}) == 6
