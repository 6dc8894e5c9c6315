"""Tasks to answer as files, and a few with candidates for their test outputs, of every kind that is counted apart."""

import json

import numpy as np

from arcdist.data import Origin, Pair, Task, TaskSet
from arcdist.evaluation.predict import Candidate
from arcdist.solving.results import Answers
from arcdist.solving.trained import Trained


class Known(Trained):
    """What is known of a run, without its models."""

    longest_side = 30

    def __init__(self, config, tasks=()):
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "tasks", tasks)


def _pair(number, side=2):
    return {"input": [[number] * side], "output": [[number]]}


def write_tasks(folder, *names, first=0, side=2):
    """Tasks of which no two have a pair in common."""
    folder.mkdir()
    for place, name in enumerate(names, start=first):
        content = {"train": [_pair(place, side), _pair(place, side + 1)], "test": [_pair(place, side + 2)]}
        (folder / f"{name}.json").write_text(json.dumps(content))


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
