"""The submission and the scores of given candidates, by hand."""

import json

import pytest
from shared.answers import ALL, ANSWERS, NEARLY, OTHER, PROTOCOL, RIGHT, TASKS

from arcdist.solving.results import NO_ANSWER, check_submission, outputs_of, results, submission


def test_the_submission_has_a_pair_for_every_test_input_of_every_task():
    pairs = {
        "a": [(RIGHT, NEARLY), (NEARLY, RIGHT)],
        "b": [(NEARLY, OTHER)],
        "c": [(OTHER, OTHER), (OTHER, NEARLY)],
        "d": [(NO_ANSWER, NO_ANSWER)],
        "e": [(NO_ANSWER, NO_ANSWER)],
        "f": [],
    }
    expected = {
        name: [dict(zip(("attempt_1", "attempt_2"), pair, strict=True)) for pair in of] for name, of in pairs.items()
    }
    assert submission(TASKS, outputs_of(TASKS, ANSWERS)) == expected


def test_results_count_what_was_left_out_as_wrong():
    content = results(TASKS, outputs_of(TASKS, ANSWERS), ANSWERS, PROTOCOL, 30)
    content = json.loads(json.dumps(content))
    counts = {name: content[name] for name in ("tasks", "outputs", "solved_at_1", "solved_at_2", "oracle")}
    # Of the tasks a, b, c, d, e one is solved whole; half of it at the first attempt.
    assert counts == {"tasks": 5, "outputs": 6, "solved_at_1": 1, "solved_at_2": 2, "oracle": 3}
    assert (content["pass_at_1"], content["pass_at_2"], content["tasks_solved"]) == (0.1, 0.2, 1)
    assert content["unknown_outputs"] == 1
    assert content["without_tests"] == ["f"]
    assert content["seconds"] == 10.0
    assert content["left_out"] == {"d": "RuntimeError: no", "e": "its longest side is 31, and 30 is the limit"}
    assert content["protocol"] == PROTOCOL
    parts = {name: (part["outputs"], part["solved_at_2"], part["oracle"]) for name, part in content["parts"].items()}
    assert parts == {"agent, one view": (6, 1, 1), "agent": (6, 2, 3), "memory": (6, 1, 1)}
    first, second, third = content["results"]["b"][0]
    assert first == {"rank": 1, "grid": [[1, 2], [3, 5]], "score": 2.0, "log_prob": -0.25, "origins": {"agent": 2}}
    assert (second["rank"], second["grid"]) == (2, [[7]])
    assert (third["score"], third["origins"]) == (1.3, {"agent": 1, "memory": 1})
    assert content["results"]["d"] == [[]]
    assert content["results"]["f"] == []


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda given: given.pop("a"), "does not hold each task once"),
        (lambda given: given.update(z=[]), "does not hold each task once"),
        (lambda given: given["a"].pop(), "task a has 1 answers for 2 test inputs"),
        (
            lambda given: given["b"][0].pop("attempt_2"),
            r"task b, answer 0: not attempt_1 and attempt_2, but",
        ),
        (
            lambda given: given["b"][0].update(attempt_1=()),
            "task b, answer 0, attempt_1: no grid with sides of 1 to 30",
        ),
        (lambda given: given["b"][0].update(attempt_1=((1,), (1, 2))), "attempt_1: no grid with sides of 1 to 30"),
        (lambda given: given["b"][0].update(attempt_2=((1,),) * 31), "attempt_2: no grid with sides of 1 to 30"),
        (lambda given: given["a"][1].update(attempt_2=((10,),)), "task a, answer 1, attempt_2: a cell is no colour"),
        (lambda given: given["a"][1].update(attempt_2=((True,),)), "task a, answer 1, attempt_2: a cell is no colour"),
    ],
)
def test_what_kaggle_would_refuse_is_never_written(harm, message):
    given = submission(TASKS, outputs_of(TASKS, ANSWERS))
    check_submission(given, ALL)
    harm(given)
    with pytest.raises(ValueError, match=message):
        check_submission(given, ALL)
