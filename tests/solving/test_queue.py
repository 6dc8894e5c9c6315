"""The queue of tasks, its folder, and what it does with tasks that fail."""

import json
import logging

import numpy as np
import pytest

from arcdist.data import Pair, Task
from arcdist.errors import ConfigError, DataError, SaveError
from arcdist.evaluation.predict import Candidate
from arcdist.solving import queue as sharing
from arcdist.solving.queue import Queue, claimed
from arcdist.solving.task_solver import TaskSolver

GRID = ((1, 2), (3, 4))
CANDIDATES = [
    Candidate(GRID, "agent", 0, -1.5),
    Candidate(((7,),), "steps", 0, -0.25),
    Candidate(GRID, "memory", 1, -1e-3),
]


class Answering(TaskSolver):
    """Answers without models, remembers for which tasks, and fails as it is told."""

    def __init__(self, fails=None, unadapted=None):
        object.__setattr__(self, "fails", fails or {})
        object.__setattr__(self, "unadapted", unadapted or {})
        object.__setattr__(self, "asked", [])

    def cost(self, task):
        return float(task.id)

    def not_held_out(self, task):
        return self.unadapted.get(task.id)

    def answer(self, task):
        self.asked.append(task.id)
        error = self.fails.get(task.id)
        if isinstance(error, list):
            error = error.pop(0) if error else None
        if error is not None:
            raise error
        return [CANDIDATES for _ in task.tests]


def task(number):
    one = Pair(np.zeros((1, 1), dtype=np.uint8), np.zeros((1, 1), dtype=np.uint8))
    return Task(str(number), (one,), (one, one), "here")


TASKS = [task(number) for number in (3, 1, 2, 5, 4)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks").mkdir()
    return tmp_path


def test_each_task_is_answered_once_the_middle_one_first_then_the_longest(folder):
    solver = Answering()
    Queue(folder, solver, TASKS).run()
    assert solver.asked == ["3", "5", "4", "2", "1"]
    again = Answering()
    (folder / "tasks" / "00001.json").unlink()
    queue = Queue(folder, again, TASKS)
    assert queue.progress() == "4 of 5 tasks"
    queue.run()
    assert again.asked == ["1"]
    answers = queue.answers()
    assert list(answers) == ["3", "1", "2", "5", "4"]
    assert answers["1"].outputs == [CANDIDATES] * 2
    assert answers["1"].failed is None
    assert json.loads((folder / "tasks" / "00001.json").read_text())["outputs"][0]["grids"] == [[[1, 2], [3, 4]], [[7]]]
    assert 0 <= answers["1"].seconds < 10


def test_a_task_that_fails_is_tried_once_more_and_then_counted(folder, caplog):
    passing, lasting = RuntimeError("for now"), KeyError("for good")
    solver = Answering({"1": [passing], "2": lasting, "3": DataError("too long for Qwen")})
    queue = Queue(folder, solver, TASKS)
    with caplog.at_level(logging.WARNING):
        queue.run()
    assert sorted(solver.asked) == ["1", "1", "2", "2", "3", "4", "5"]
    failed = {name: given.failed for name, given in queue.answers().items()}
    assert failed == {"1": None, "2": "KeyError: 'for good'", "3": "too long for Qwen", "4": None, "5": None}
    assert queue.answers()["2"].outputs == [[], []]
    assert [message for message in caplog.messages if "Task" in message] == [
        "Task 3 is not answered: too long for Qwen",
        "Task 2 failed, and is tried once more: KeyError: 'for good'",
        "Task 2 failed, and counts as wrong: KeyError: 'for good'",
        "Task 1 failed, and is tried once more: RuntimeError: for now",
    ]


def test_what_could_not_be_held_out_is_kept_with_the_answers(folder):
    queue = Queue(
        folder, Answering({"2": DataError("no")}, {"1": "one demonstration", "2": "one demonstration"}), TASKS
    )
    queue.run()
    kept = {name: given.not_held_out for name, given in queue.answers().items()}
    assert kept == {"1": "one demonstration", "2": None, "3": None, "4": None, "5": None}


def test_processes_share_out_what_is_left_evenly(folder, monkeypatch):
    monkeypatch.setattr(sharing, "world_size", lambda: 3)
    costs = dict(enumerate([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0]))
    shares = []
    for number in range(3):
        monkeypatch.setattr(sharing, "rank", lambda number=number: number)
        shares.append(sharing._share(costs))
    assert sorted(place for share in shares for place in share) == list(costs)
    assert [sum(costs[place] for place in share) for share in shares] == [13.0, 12.0, 11.0]


def test_an_interrupted_queue_keeps_what_is_answered(folder):
    solver = Answering({"4": KeyboardInterrupt()})
    queue = Queue(folder, solver, TASKS)
    with pytest.raises(KeyboardInterrupt):
        queue.run()
    assert queue.progress() == "2 of 5 tasks"
    assert sorted(path.name for path in (folder / "tasks").iterdir()) == ["00000.json", "00003.json"]


def test_a_broken_answer_is_named(folder):
    queue = Queue(folder, Answering(), TASKS)
    queue.run()
    file = folder / "tasks" / "00002.json"
    file.write_text(file.read_text()[:20])
    with pytest.raises(DataError, match=rf"^{file} is not an answered task .* remove it, and start once more"):
        queue.answers()


def test_what_cannot_be_written_is_told_with_how_to_continue(folder):
    queue = Queue(folder, Answering(), TASKS)
    (folder / "tasks").rmdir()
    with pytest.raises(SaveError, match=rf"^{folder} cannot be written .*--output_dir {folder} continues\.$"):
        queue.run()


PROTOCOL = {"run": "runs/a, step 3", "weights": "ab", "solve": {"views": 2, "steps": True}, "seed": 0}


def test_a_folder_belongs_to_its_protocol(tmp_path):
    folder = tmp_path / "new" / "answers"
    with claimed(folder, PROTOCOL):
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "protocol.json", "tasks"]
        with (
            pytest.raises(ConfigError, match=rf"^Another process is answering puzzles in {folder}: wait until it ends"),
            claimed(folder, PROTOCOL),
        ):
            pass
    assert sorted(path.name for path in folder.iterdir()) == ["protocol.json", "tasks"]
    # The same run may be named by another path.
    with claimed(folder, PROTOCOL | {"run": "../runs/a, step 3"}):
        pass
    other = PROTOCOL | {"seed": 1, "solve": {"views": 8, "steps": True}}
    message = rf"^{folder} holds answers of another kind \(seed is 1, there 0, solve.views is 8, there 2\): choose"
    with pytest.raises(ConfigError, match=message), claimed(folder, other):
        pass
    (folder / "protocol.json").write_text("{")
    with pytest.raises(DataError, match="is not the protocol of answers"), claimed(folder, PROTOCOL):
        pass


def test_what_is_no_place_for_answers_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(ConfigError, match=rf"^The output folder {place} cannot be written"),
            claimed(place, PROTOCOL),
        ):
            pass
    message = rf"^{tmp_path} holds file, and no answers to continue: choose another with --output_dir FOLDER\.$"
    with pytest.raises(ConfigError, match=message), claimed(tmp_path, PROTOCOL):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
