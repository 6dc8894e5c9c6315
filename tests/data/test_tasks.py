"""ARC tasks, and raw JSON that is none."""

import json

import numpy as np
import pytest

from arcdist.data.forms import TaskColumns, find_columns, form_of
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


@pytest.mark.parametrize("side", [30, 31, 300])
def test_grids_of_any_size_are_read(side):
    assert parse_task("ab", with_input([[1] * side] * 2), "ab.json").longest_side == side


def test_a_list_of_pairs_is_a_task_without_test_pairs():
    parsed = parse_task("ab", [PAIR, {"input": [[7]], "output": [[8]]}], "ab.json")
    assert [pair.input.tolist() for pair in parsed.demonstrations] == [GRID, [[7]]]
    assert parsed.tests == ()


INPUTS, OUTPUTS = [[[1, 2]], [[3]]], [[[4]], [[5]]]
PAIRS = [{"input": i, "output": o} for i, o in zip(INPUTS, OUTPUTS, strict=True)]


def lists(pairs):
    return None if pairs is None else [(i.tolist(), o if o is None else o.tolist()) for i, o in pairs]


@pytest.mark.parametrize(
    ("raw", "tests"),
    [
        ({"fewshots": PAIRS, "question": PAIRS[:1]}, [([[1, 2]], [[4]])]),
        (
            {
                "example_inputs": INPUTS,
                "example_outputs": OUTPUTS,
                "question_inputs": INPUTS,
                "question_outputs": OUTPUTS,
            },
            [([[1, 2]], [[4]]), ([[3]], [[5]])],
        ),
        ({"train_in": INPUTS, "train_out": OUTPUTS, "test_in": INPUTS[:1]}, [([[1, 2]], None)]),
        ({"train_in": INPUTS, "train_out": OUTPUTS, "test_in": INPUTS[:1], "test_out": []}, [([[1, 2]], None)]),
        ({"train": PAIRS, "test_input": INPUTS[0], "test_output": OUTPUTS[0]}, [([[1, 2]], [[4]])]),
        ({"train": PAIRS, "test_input": "[[1, 2]]", "test_output": "[[4]]"}, [([[1, 2]], [[4]])]),
        ({"fewshots": json.dumps(PAIRS), "question": [{"input": "[[6]]", "output": None}]}, [([[6]], None)]),
        ({"examples": [[i, o] for i, o in zip(INPUTS, OUTPUTS, strict=True)], "seeds": [1]}, []),
        ({"pairs": PAIRS}, []),
        ({"input": INPUTS, "output": OUTPUTS, "id": "x"}, []),
    ],
)
def test_other_names_and_forms_of_the_same_task_are_read(raw, tests):
    assert form_of(raw) == "task"
    parsed = parse_task("ab", raw, "here")
    assert lists((pair.input, pair.output) for pair in parsed.demonstrations) == [([[1, 2]], [[4]]), ([[3]], [[5]])]
    assert lists((pair.input, pair.output) for pair in parsed.tests) == tests


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["id", "train", "test", "examples"], TaskColumns("train", "test")),
        (["train", "test_input", "test_output"], TaskColumns("train", ("test_input", "test_output"))),
        (["train"], None),
        (["train", "tests"], None),
        (["test"], None),
        (["train", "training", "question"], None),
        (["examples", "pairs"], None),
        (["example_inputs", "example_outputs"], None),
        (["input"], None),
        (["Question", "Final Answer"], None),
        ([], None),
    ],
)
def test_columns_are_taken_only_if_their_meaning_is_plain(names, columns):
    assert find_columns(names) == columns


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (task(), "task"),
        ([PAIR], "task"),
        ({"test": [PAIR]}, "task"),
        ({"a": task()}, "tasks by id"),
        ({"a": [PAIR, PAIR], "b": 5}, "tasks by id"),
        ([task(), task()], "list of tasks"),
        ([[PAIR], [PAIR]], "list of tasks"),
        ([{"input": INPUTS, "output": OUTPUTS}], "list of tasks"),
        ({"a": [GRID]}, "solutions"),
        ({"a": [{"attempt_1": GRID, "attempt_2": GRID}]}, "submission"),
        ({"name": "app", "scripts": {"test": "jest"}}, None),
        ({"a": {"examples": 3}, "b": 1.5}, None),
        ([1, "two", None, []], None),
        ([], None),
        ({}, None),
        (GRID, None),
        (5, None),
    ],
)
def test_the_content_of_a_file_is_recognised(content, form):
    assert form_of(content) == form


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
        (task(test=[PAIR, {"input": []}]), "test pair 1, input is empty: a grid has at least one row"),
        (with_input(None), "train pair 1, input is null: write a list of rows"),
        (with_input("12"), "train pair 1, input is a string"),
        (with_input([[]]), "train pair 1, input, row 0 is empty"),
        (with_input([[1, 2], 3]), "train pair 1, input, row 1 is a number: write a list of colours"),
        (with_input([[1, 2], [3]]), "input, row 1 has 1 colours, row 0 has 2: make all rows of a grid equally long"),
        (with_input([[1] * 31, [1] * 30]), "train pair 1, input, row 1 has 30 colours, row 0 has 31"),
        (with_input([[1] * 299 + [10]]), "train pair 1, input, row 0, column 299 holds 10"),
        (with_input([]), "train pair 1, input is empty: a grid has at least one row."),
        *(
            (
                task(test=[PAIR, {"input": GRID, "output": empty}]),
                'test pair 1, output is empty: write null, or leave "output" out, if the answer is not known.',
            )
            for empty in ([], [[]], "")
        ),
        (task(train=[{"input": GRID, "output": []}]), "train pair 0, output is empty: a grid has at least one row."),
        ([PAIR, {"input": GRID}], 'x.json: task ab, pair 1 lacks the key "output"'),
        ([PAIR, 5], "x.json: task ab, pair 1 is a number"),
        (
            {"fewshots": [PAIR], "question": [{"input": [[12]]}]},
            "task ab (train = fewshots, test = question), test pair 0, input, row 0, column 0 holds 12",
        ),
        (
            {"train_in": [GRID, GRID], "train_out": [GRID], "test": []},
            "task ab, train has 2 under 'train_in' and 1 under 'train_out': give every input its output.",
        ),
        ({"train_in": "abc", "train_out": [GRID], "test": []}, 'has a string under "train"'),
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

    long = [[1] * 300]
    pairs = [(long, long), (long * 300, None), ([[1]] * 300, None), (long, None)]
    pairs += [([[1, 2]], [[3]]), ([[1], [2]], [[3]]), ([[1, 2]], [[4]]), ([[3]], [[1, 2]]), ([[1, 2]], None)]
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
