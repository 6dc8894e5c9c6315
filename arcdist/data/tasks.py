"""ARC tasks: what one is, the forms in which one is written, and the validation of raw JSON that claims to be one."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

import numpy as np
from jaxtyping import UInt8

from arcdist.errors import DataError

MAX_SIDE = 30
"""Longest side of an ARC grid, and of a grid that a model can be given; a task with a longer one is never used."""
NUM_COLORS = 10
"""Colours of an ARC grid: 0, the background, to 9."""

_COLORS = frozenset(range(NUM_COLORS))

Grid: TypeAlias = UInt8[np.ndarray, "_ _"]
"""Colours by row and column."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """An input grid and the output grid it is turned into."""

    input: UInt8[np.ndarray, "h w"]
    output: UInt8[np.ndarray, "p q"] | None
    """None if the answer is not known, as in Kaggle's test files."""

    def digest(self) -> bytes:
        """Hash the contents: equal pairs, and no others, have equal digests."""
        content = blake2b(digest_size=16)
        for grid in self.grids():
            # A side of 0, which no grid has, sets apart those that do not fit in a byte.
            content.update(bytes(grid.shape) if max(grid.shape) < 256 else f"\0{grid.shape}".encode())
            content.update(grid.tobytes())
        return content.digest()

    def grids(self) -> Iterator[Grid]:
        """Go through the input and, if there is one, the output."""
        yield self.input
        if self.output is not None:
            yield self.output


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A puzzle: pairs that demonstrate one transformation, and test pairs to apply it to."""

    id: str
    demonstrations: tuple[Pair, ...]
    tests: tuple[Pair, ...]
    source: str
    """Where it was read from, in words for a message."""

    @property
    def known_pairs(self) -> list[Pair]:
        """Its demonstrations and the test pairs with an output."""
        return [pair for pair in self.demonstrations + self.tests if pair.output is not None]

    @property
    def longest_side(self) -> int:
        """Longest side of all its grids, known test outputs included."""
        longest: int = max(max(grid.shape) for pair in self.demonstrations + self.tests for grid in pair.grids())
        return longest

    def without_answers(self) -> "Task":
        """The same task as someone sees it who has to answer it: no test output is known."""
        return replace(self, tests=tuple(Pair(pair.input, None) for pair in self.tests))


def tasks_digest(tasks: Iterable[Task]) -> str:
    """A checksum of the ids and grids of tasks in their order, independent of where they were read from."""
    content = blake2b(digest_size=16)
    for task in tasks:
        content.update(f"{task.id}\0{len(task.demonstrations)}\0{len(task.tests)}\0".encode())
        for pair in task.demonstrations + task.tests:
            content.update(pair.digest())
    return content.hexdigest()


Columns: TypeAlias = str | tuple[str, ...]
"""A column of pairs, or one of inputs and, if they are known, one of outputs."""


def _names(columns: Columns) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else columns


class TaskColumns(NamedTuple):
    """Which columns of a table, or keys of an object, hold a task."""

    train: Columns
    test: Columns | None
    """None if there are no test pairs, only pairs."""

    @property
    def is_arc(self) -> bool:
        """Whether they are named as in ARC's own files."""
        return self == ("train", "test")

    def __str__(self) -> str:
        names = (" and ".join(_names(part)) for part in self if part)
        return ", ".join(f"{role} = {name}" for role, name in zip(("train", "test"), names, strict=False))


TRAIN_WORDS = ("train", "training", "example", "examples", "fewshots", "demonstrations")
TEST_WORDS = ("test", "question", "questions")
"""What columns of demonstrations and of test pairs are called, or begin with."""
_ONLY_PAIRS: tuple[Columns, ...] = ("examples", "pairs", ("input", "output"))
_GRIDS = (("input", "output"), ("inputs", "outputs"), ("in", "out"))


def find_columns(names: Collection[str]) -> TaskColumns | None:
    """Find which columns hold a task; None if that is not plain from their names.

    Named as in ARC or as on the Hugging Face Hub: `train` and `test`, `fewshots` and `question`, `example_inputs` and
    `example_outputs` with `question_inputs` and `question_outputs`, `train_in` and so on; tasks without test pairs have
    `examples`, `pairs`, or `input` and `output`.
    """
    if {"train", "test"} <= set(names):
        return TaskColumns("train", "test")
    train, test = (list(_columns_of(words, names)) for words in (TRAIN_WORDS, TEST_WORDS))
    if len(train) == len(test) == 1:
        return TaskColumns(train[0], test[0])
    pairs = [part for part in _ONLY_PAIRS if set(_names(part)) <= set(names)]
    if len(pairs) == 1 and not test and train in ([], pairs):
        return TaskColumns(pairs[0], None)
    return None


def _columns_of(words: Iterable[str], names: Collection[str]) -> Iterator[Columns]:
    for word in words:
        if word in names:
            yield word
        for inputs, outputs in _GRIDS:
            pair = (f"{word}_{inputs}", f"{word}_{outputs}")
            if pair[0] in names:
                yield pair if pair[1] in names else pair[:1]


def as_arc(row: Mapping[str, Any], columns: TaskColumns, place: str) -> dict[str, Any]:
    """Bring a row into the form of ARC's JSON. Values may be JSON text; what is no task is left to `parse_task`.

    Raises:
        DataError: there are not as many outputs as inputs, or the row is one pair only.
    """
    if columns.train == ("input", "output") and _is_grid(decoded(row.get("input"))):
        _refuse(place, "is one pair (input and output)", "make all pairs of a task one row, as two lists of grids")
    parts = {"train": columns.train, **({} if columns.test is None else {"test": columns.test})}
    present = {role: part for role, part in parts.items() if set(_names(part)) <= set(row)}
    content = {role: _pairs(row, part, f"{place}, {role}") for role, part in present.items()}
    return content if columns.test else {**content, "test": []}


def _pairs(row: Mapping[str, Any], columns: Columns, place: str) -> Any:
    if isinstance(columns, str):
        pairs = decoded(row[columns])
        # `datasets` gives a sequence of structures column by column.
        if isinstance(pairs, dict) and all(isinstance(column, list) for column in pairs.values()):
            _check_lengths({name: len(column) for name, column in pairs.items()}, place)
            pairs = [dict(zip(pairs, pair, strict=True)) for pair in zip(*pairs.values(), strict=True)]
        return list(map(_pair, pairs)) if isinstance(pairs, list) else pairs
    inputs, outputs = ([*(decoded(row[name]) for name in columns), None])[:2]
    if _is_grid(inputs):
        inputs, outputs = [inputs], [outputs]
    if not isinstance(inputs, list) or not isinstance(outputs, list | None):
        return inputs
    outputs = outputs or [None] * len(inputs)
    _check_lengths(dict(zip(columns, (len(inputs), len(outputs)), strict=False)), place)
    return [_pair(pair) for pair in zip(inputs, outputs, strict=True)]


def _pair(pair: Any) -> Any:
    """A pair as ARC has it, from one that may be `[input, output]`."""
    if isinstance(pair, list | tuple) and len(pair) == 2:
        pair = dict(zip(("input", "output"), pair, strict=True))
    return {key: decoded(value) for key, value in pair.items()} if isinstance(pair, dict) else pair


def _check_lengths(lengths: Mapping[str, int], place: str) -> None:
    if len(set(lengths.values())) > 1:
        found = " and ".join(f"{count} under {name!r}" for name, count in lengths.items())
        _refuse(place, f"has {found}", "give every input its output")


def decoded(value: Any) -> Any:
    """A value of a column; what its text says if it is JSON."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


Form: TypeAlias = Literal["task", "tasks by id", "list of tasks", "solutions", "submission"]


def form_of(content: object) -> Form | None:
    """What the content of a JSON file looks like; None for what has nothing of a task.

    A task is ARC's object, one with other names (`find_columns`), or a list of pairs.
    """
    if isinstance(content, dict):
        if _is_task(content):
            return "task"
        if any(map(_is_task, content.values())):
            return "tasks by id"
        if any(isinstance(value, list) and any(map(_is_grid, value)) for value in content.values()):
            return "solutions"
        attempts = (item for value in content.values() if isinstance(value, list) for item in value)
        return "submission" if any(isinstance(item, dict) and "attempt_1" in item for item in attempts) else None
    if isinstance(content, list):
        return "task" if _is_task(content) else "list of tasks" if any(map(_is_task, content)) else None
    return None


def _is_task(value: object) -> bool:
    if isinstance(value, dict):
        if "train" in value or isinstance(value.get("test"), list):
            return True
        columns = find_columns(value)
        if columns is None or _is_pair(value):
            return False
        return isinstance(decoded(value[_names(columns.train)[0]]), list)
    return isinstance(value, list) and any(map(_is_pair, value))


def _is_pair(value: object) -> bool:
    """Whether it is an object with an input grid, not with a list of them, as a whole task may have."""
    if not isinstance(value, dict) or "input" not in value:
        return False
    grids = value["input"]
    return not (isinstance(grids, list) and grids and _is_grid(grids[0]))


def _is_grid(value: object) -> bool:
    """Whether it is a list of rows: lists, but none of lists."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], list)
        and not any(isinstance(item, list | str) for item in value[0])
    )


def parse_task(task_id: str, raw: object, where: str) -> Task:
    """Turn `{"train": [{"input": rows, "output": rows}, ...], "test": [...]}` into a task.

    A test pair may lack its output (or have null): then it is None. Keys that ARC does not have are ignored. A list of
    pairs is a task whose demonstrations they are, without test pairs; `find_columns` says which other names are read.
    Grids may be larger than ARC's.
    `where` is the file or source that messages name.

    Raises:
        DataError: it is not an ARC task; the message says where (task, pair, grid, row, column) and how to correct it.
    """
    place = f"{where}: task {task_id}"
    if isinstance(raw, list) and _is_task(raw):
        return Task(task_id, _parse_pairs(raw, f"{place},", output_required=True), (), where)
    if not isinstance(raw, dict):
        _refuse(place, f"is {_kind(raw)}", 'write an object with the keys "train" and "test"')
    columns = find_columns(raw)
    if columns is not None and not columns.is_arc:
        raw, place = as_arc(raw, columns, place), f"{place} ({columns})"
    demonstrations, tests = (
        _parse_pairs(_part(raw, key, place), f"{place}, {key}", output_required=key == "train")
        for key in ("train", "test")
    )
    if not demonstrations:
        _refuse(place, "has no demonstrations", 'give "train" at least one pair, or take the task out')
    return Task(task_id, demonstrations, tests, where)


def _part(task: dict[str, Any], key: str, place: str) -> list[Any]:
    if key not in task:
        found = ", ".join(f'"{name}"' for name in task) or "none"
        _refuse(place, f'lacks the key "{key}" (its keys: {found})', f'add "{key}", a list of pairs')
    pairs = task[key]
    if not isinstance(pairs, list):
        _refuse(place, f'has {_kind(pairs)} under "{key}"', "write a list of pairs")
    return pairs


def _parse_pairs(pairs: list[Any], place: str, output_required: bool) -> tuple[Pair, ...]:
    # `task ab, pair 0` for a list of pairs, `task ab, train pair 0` else.
    return tuple(_parse_pair(pair, f"{place} pair {index}", output_required) for index, pair in enumerate(pairs))


def _parse_pair(pair: object, place: str, output_required: bool) -> Pair:
    if not isinstance(pair, dict):
        _refuse(place, f"is {_kind(pair)}", 'write an object with the keys "input" and "output"')
    if "input" not in pair:
        _refuse(place, 'lacks the key "input"', 'add "input", a list of rows')
    output = pair.get("output")
    if output is None and output_required:
        _refuse(place, 'lacks the key "output"', 'add "output", a list of rows, or take the pair out')
    if output in ([], [[]], "") and not output_required:
        _refuse(f"{place}, output", "is empty", 'write null, or leave "output" out, if the answer is not known')
    grid = _parse_grid(pair["input"], f"{place}, input")
    return Pair(grid, None if output is None else _parse_grid(output, f"{place}, output"))


def _parse_grid(rows: Any, place: str) -> UInt8[np.ndarray, "h w"]:
    _check_list(rows, place, "rows", "a grid has at least one row")
    for index, row in enumerate(rows):
        here = f"{place}, row {index}"
        _check_list(row, here, "colours", "a row has at least one colour")
        if len(row) != len(rows[0]):
            _refuse(here, f"has {len(row)} colours, row 0 has {len(rows[0])}", "make all rows of a grid equally long")
        # The types are compared as well because True and 1.0 are equal to the colour 1.
        if set(map(type, row)) != {int} or not _COLORS.issuperset(row):
            column = next(c for c, color in enumerate(row) if type(color) is not int or color not in _COLORS)
            needed = f"a colour is an integer from 0 to {NUM_COLORS - 1}"
            _refuse(f"{here}, column {column}", f"holds {_shortened(row[column])}", needed)
    grid = np.array(rows, dtype=np.uint8)
    grid.setflags(write=False)
    return grid


def _check_list(value: object, place: str, items: str, needed: str) -> None:
    if not isinstance(value, list):
        _refuse(place, f"is {_kind(value)}", f"write a list of {items}")
    if not value:
        _refuse(place, "is empty", needed)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shortened(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge integer"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _refuse(place: str, problem: str, remedy: str) -> NoReturn:
    raise DataError(f"{place} {problem}: {remedy}.")
