"""Which puzzles a name means, and how their answers are shown."""

import re

import pytest
from rich.console import Console
from shared.answers import NEARLY, OTHER, RIGHT, Known, candidates, task, write_tasks

from arcdist.config import load_config
from arcdist.errors import ConfigError
from arcdist.solving.solve import _find, _shown


def shown(puzzle, answers, views=2, width=80):
    """What is printed for a puzzle, without the blanks at the ends of lines."""
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for part in _shown(puzzle, answers, views, console):
            console.print(part)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_name_is_a_task_of_the_run_also_of_sources_that_joined(tmp_path):
    write_tasks(tmp_path / "ours", "a", "b")
    write_tasks(tmp_path / "joined", "c", "d", first=2)
    write_tasks(tmp_path / "large", "e", first=4, side=29)
    (tmp_path / "large" / "e.json").rename(tmp_path / "joined" / "e.json")
    (tmp_path / "config.yaml").write_text(
        f"data: {{source: {tmp_path}/ours, also_demonstrations_of: ['{tmp_path}/joined']}}"
    )
    config = load_config(["--config", str(tmp_path / "config.yaml")]).config
    trained = Known(config)
    (own,), (joined,) = _find("a", trained), _find("c", trained)
    assert (own.id, joined.id) == ("a", "c")
    # Training has joined its demonstrations alone.
    assert [pair.input.shape for pair in joined.tests] == [(1, 4)]
    for name in ("e", "f"):  # Too large for the agent, and none.
        told = rf"^{name} does not exist as a file, and is no task of .*/ours .* and .*/joined .*: give a file of task"
        with pytest.raises(ConfigError, match=told):
            _find(name, trained)


def test_attempts_say_who_proposed_them_and_what_is_wrong():
    by_steps = candidates(OTHER, OTHER, OTHER, OTHER, origin="steps")
    by_two = [*candidates(RIGHT, origin="steps"), *candidates(RIGHT, origin="memory")]
    puzzle = task("p", ((1,),), NEARLY)
    lines = shown(puzzle, [candidates(OTHER, OTHER), [*by_steps, *by_two, *candidates(NEARLY)]], views=4)
    assert lines[:6] == [
        "p: 1 demonstration, 2 test pairs",
        "",
        "test 0",
        "input   attempt 1           target",
        "        2 of 4 views",
        "        1 of 1 cell wrong",
    ]
    at = lines.index("test 1")
    assert [re.split(" {2,}", line) for line in lines[at + 1 : at + 4]] == [
        ["input", "attempt 1", "attempt 2", "target"],
        ["", "by steps only", "1 of 4 views"],
        ["", "wrong size", "solved"],
    ]
    lines = shown(task("p", None), [[*by_two, *candidates(OTHER)]], views=1)
    assert [re.split(" {2,}", line) for line in lines[3:5]] == [
        ["input", "attempt 1", "attempt 2"],
        ["", "1 of 1 view", "by steps and memory only"],
    ]


def test_a_test_pair_without_an_answer_is_shown_as_such():
    lines = shown(task("p", None, None), [[], candidates(OTHER)])
    assert lines[3:7] == ["input", "0 1", "no answer: too long for Qwen", ""]
