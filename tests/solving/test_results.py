"""Submission, scores, table and page of given candidates, by hand."""

import json
import re

import numpy as np
import pytest

from arcdist.data import Origin, Pair, Task, TaskSet
from arcdist.evaluation.predict import Candidate
from arcdist.solving.results import FILES, NO_ANSWER, Answers, check_submission, outputs_of, submission, write_results

RIGHT, NEARLY, OTHER = ((1, 2), (3, 4)), ((1, 2), (3, 5)), ((7,),)
PROTOCOL = {"scored": "mine (training)", "protocol": "unseen", "solve": {"views": 2}, "changed": {}, "run": "r"}


def array(rows):
    return np.array(rows, dtype=np.uint8)


def task(name, *targets, side=2):
    demonstration = Pair(np.zeros((side, side), dtype=np.uint8), array([[1]]))
    tests = tuple(Pair(array([[0, 1]]), None if target is None else array(target)) for target in targets)
    return Task(name, (demonstration,), tests, "here")


def candidates(*grids, origin="agent"):
    return [Candidate(grid, origin, view, -1.0) for view, grid in enumerate(grids)]


def answered(*outputs, failed=None):
    return Answers(outputs=list(outputs), failed=failed, seconds=2.0)


ALL = (
    task("a", RIGHT, RIGHT),  # solved at 1, solved at 2
    task("b", RIGHT),  # among the candidates only
    task("c", None, RIGHT),  # not known; nearly
    task("d", RIGHT),  # failed
    task("e", RIGHT, side=31),  # too large
    task("f"),  # nothing to answer
)
TASKS = TaskSet(origin=Origin("mine", "training"), tasks=ALL, used=tuple(each for each in ALL if each.id != "e"))
ANSWERS = {
    "a": answered(candidates(RIGHT, RIGHT, NEARLY), candidates(NEARLY, NEARLY, RIGHT)),
    "b": answered(candidates(NEARLY, NEARLY, OTHER, OTHER, RIGHT) + candidates(RIGHT, origin="memory")),
    "c": answered(candidates(OTHER), candidates(OTHER, OTHER, NEARLY)),
    "d": answered([], failed="RuntimeError: no"),
    "f": answered(),
}


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """The files by name, and what was printed at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    write_results(tmp_path, TASKS, ANSWERS, PROTOCOL, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    return {path.name: path.read_text() for path in tmp_path.iterdir()} | {"": capsys.readouterr().out}


def test_the_submission_has_a_pair_for_every_test_input_of_every_task(written):
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
    assert json.loads(written["submission.json"]) == json.loads(json.dumps(expected))


def test_results_count_what_was_left_out_as_wrong(written):
    content = json.loads(written["results.json"])
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


def test_the_table_has_a_line_a_test_output_that_is_known(written):
    assert written["solved.csv"] == (
        "task,test,longest_side,solved_at_1,solved_at_2,among_candidates\n"
        "a,0,2,1,1,1\na,1,2,0,1,1\nb,0,2,0,0,1\nc,1,2,0,0,0\nd,0,2,0,0,0\ne,0,31,0,0,0\n"
    )


def test_scores_fit_into_80_columns(written, tmp_path):
    lines = [line.rstrip() for line in written[""].splitlines()]
    assert max(map(len, [line for line in lines if str(tmp_path) not in line])) == 80
    assert lines[:6] == [
        "mine (training): 6 test outputs of 5 tasks, unseen (nothing of these tasks was",
        "trained on).",
        "solved                      at 1  at 2  oracle   pass@1   pass@2  95 % of pass@2",
        "────────────────────────────────────────────────────────────────────────────────",
        "all votes                      1     2       3  10.00 %  20.00 %  0.00 – 60.00 %",
        "agent, one view                1     1       1  10.00 %  10.00 %  0.00 – 30.00 %",
    ]
    assert lines[-8:] == [
        "1 test output not known: answered without being scored; submission.json holds",
        "the answers.",
        "1 task without test pairs: nothing to answer.",
        "2 tasks without an answer, counted as wrong:",
        "  d: RuntimeError: no",
        "  e: its longest side is 31, and 30 is the limit",
        f"10 s of computing. In {tmp_path}:",
        "submission.json, results.json, solved.csv, answers.html.",
    ]


def test_what_cannot_be_scored_is_said(tmp_path, capsys):
    tasks = TaskSet(origin=Origin("mine", "training"), tasks=(ALL[5], task("g", None)), used=ALL[5:])
    write_results(tmp_path, tasks, {"f": answered(), "g": answered(candidates(RIGHT))}, PROTOCOL, 30)
    printed = capsys.readouterr().out
    told = "1 test output not known: nothing can be scored; submission.json holds the answers."
    assert " ".join(printed.split()).startswith(told)
    assert "pass@" not in printed
    assert "<h2>Scores</h2>" not in (tmp_path / "answers.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["outputs"] == 0


def test_the_page_shows_the_solved_and_the_near_ones_first(written):
    page = written["answers.html"]
    shown = re.findall(r'<figure class="output"><figcaption><b>(\w), test (\d)</b>\n<span class="(\w+)">([^<]*)<', page)
    assert shown == [
        ("a", "0", "good", "solved"),
        ("a", "1", "good", "solved at the second attempt"),
        ("b", "0", "bad", "not solved"),
        ("c", "1", "bad", "not solved"),
        ("d", "0", "bad", "no answer"),
        ("e", "0", "bad", "no answer"),
        ("c", "0", "bad", "not known"),
    ]
    assert page.count("the right grid had rank 3 of 3") == 1
    captions = re.findall(r"<figcaption>(.*)</figcaption>", page)
    assert captions[:3] == ["input, 1 × 2", "attempt 1, 2 × 2: solved", "attempt 2, 2 × 2: 1 of 4 cells wrong"]
    assert captions[8:12] == [
        "input, 1 × 2",
        "attempt 1, 2 × 2: 1 of 4 cells wrong",
        "attempt 2, 1 × 1: wrong size",
        "target, 2 × 2",
    ]
    assert captions[12] == "difference to attempt 1"
    # It needs no other file, and says what it is about.
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "mine (training): 6 test outputs of 5 tasks, unseen" in page
    for word in ("<th>solve.views</th>", "<th>run</th>", "copy the input", "its longest side is 31"):
        assert word in page


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
