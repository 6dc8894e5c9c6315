"""The files of an evaluation, what it prints, and its page, by hand."""

import json
import re
from dataclasses import replace

import pytest
from shared.answers import ALL, ANSWERS, PROTOCOL, RIGHT, TASKS, answered, candidates, task

from arcdist.data import Origin, TaskSet
from arcdist.solving.report import FILES, write_results


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """The files by name, and what was printed at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    write_results(tmp_path, TASKS, ANSWERS, PROTOCOL, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    return {path.name: path.read_text() for path in tmp_path.iterdir()} | {"": capsys.readouterr().out}


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


@pytest.mark.parametrize(
    ("solve", "missed"),
    [
        ({"adapt_steps": 2, "draws": 0}, "could not be adapted"),
        ({"adapt_steps": 0, "draws": 3}, "could have no draw chosen"),
        ({"adapt_steps": 2, "draws": 3}, "could not be adapted and could have no draw chosen"),
    ],
)
def test_tasks_without_demonstrations_to_hold_out_are_counted(tmp_path, capsys, solve, missed):
    reasons = {"a": "one demonstration", "b": "one demonstration", "c": "demonstrations that are too long for Qwen"}
    answers = {
        name: replace(given, not_held_out=None if given.failed else reasons.get(name))
        for name, given in ANSWERS.items()
    }
    write_results(tmp_path, TASKS, answers, PROTOCOL | {"solve": {"views": 2} | solve}, 30)
    told = (
        f"2 tasks {missed}: they have one demonstration.",
        f"1 task {missed}: it has demonstrations that are too long for Qwen.",
    )
    printed, page = " ".join(capsys.readouterr().out.split()), (tmp_path / "answers.html").read_text()
    for sentence in told:
        assert sentence in printed
        assert f"<p>{sentence}</p>" in page


def test_tasks_left_out_by_limits_or_in_part_are_named(tmp_path, capsys):
    small, large = [task(f"t{number}", RIGHT) for number in range(5)], task("u", RIGHT, side=12)
    part = task("v", RIGHT, RIGHT)
    tasks = TaskSet(origin=Origin("mine", "training"), tasks=(*small, large, part), used=(small[0], part))
    told = "1 test pair of 2 not answered: too long"
    answers = {"t0": answered(candidates(RIGHT)), "v": answered(candidates(RIGHT), [], failed=told)}
    write_results(tmp_path, tasks, answers, PROTOCOL, 10)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[-9:-2] == [
        "6 tasks without an answer to each test input, counted as wrong:",
        *(f"  t{number}: left out by data.max_tasks" for number in range(1, 5)),
        "  u: its longest side is 12, and 10 is the limit",
        "  and 1 more: results.json says why.",
    ]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["left_out"]["v"] == told
    # A half of v is solved, and t0; of 7 tasks.
    assert (content["outputs"], content["solved_at_2"], content["pass_at_2"]) == (8, 2, 1.5 / 7)


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
