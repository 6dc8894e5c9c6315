"""The forms that tasks have outside ARC's own files, by columns, as text or as lists of pairs, brought into ARC's."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from arcdist.errors import DataError

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
        refuse(place, "is one pair (input and output)", "make all pairs of a task one row, as two lists of grids")
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
        refuse(place, f"has {found}", "give every input its output")


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
        if is_task(content):
            return "task"
        if any(map(is_task, content.values())):
            return "tasks by id"
        if any(isinstance(value, list) and any(map(_is_grid, value)) for value in content.values()):
            return "solutions"
        attempts = (item for value in content.values() if isinstance(value, list) for item in value)
        return "submission" if any(isinstance(item, dict) and "attempt_1" in item for item in attempts) else None
    if isinstance(content, list):
        return "task" if is_task(content) else "list of tasks" if any(map(is_task, content)) else None
    return None


def is_task(value: object) -> bool:
    """Whether the content of a JSON file looks like one task; see `form_of`."""
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


def refuse(place: str, problem: str, remedy: str) -> NoReturn:
    """Raise the `DataError` that says where the problem is, what it is, and how to correct it."""
    raise DataError(f"{place} {problem}: {remedy}.")
