"""ARC tasks: what one is, the forms in which one is written, and the validation of raw JSON that claims to be one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from arcdist.data.forms import as_arc, find_columns, is_task, refuse

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
    if isinstance(raw, list) and is_task(raw):
        return Task(task_id, _parse_pairs(raw, f"{place},", output_required=True), (), where)
    if not isinstance(raw, dict):
        refuse(place, f"is {_kind(raw)}", 'write an object with the keys "train" and "test"')
    columns = find_columns(raw)
    if columns is not None and not columns.is_arc:
        raw, place = as_arc(raw, columns, place), f"{place} ({columns})"
    demonstrations, tests = (
        _parse_pairs(_part(raw, key, place), f"{place}, {key}", output_required=key == "train")
        for key in ("train", "test")
    )
    if not demonstrations:
        refuse(place, "has no demonstrations", 'give "train" at least one pair, or take the task out')
    return Task(task_id, demonstrations, tests, where)


def _part(task: dict[str, Any], key: str, place: str) -> list[Any]:
    if key not in task:
        found = ", ".join(f'"{name}"' for name in task) or "none"
        refuse(place, f'lacks the key "{key}" (its keys: {found})', f'add "{key}", a list of pairs')
    pairs = task[key]
    if not isinstance(pairs, list):
        refuse(place, f'has {_kind(pairs)} under "{key}"', "write a list of pairs")
    return pairs


def _parse_pairs(pairs: list[Any], place: str, output_required: bool) -> tuple[Pair, ...]:
    # `task ab, pair 0` for a list of pairs, `task ab, train pair 0` else.
    return tuple(_parse_pair(pair, f"{place} pair {index}", output_required) for index, pair in enumerate(pairs))


def _parse_pair(pair: object, place: str, output_required: bool) -> Pair:
    if not isinstance(pair, dict):
        refuse(place, f"is {_kind(pair)}", 'write an object with the keys "input" and "output"')
    if "input" not in pair:
        refuse(place, 'lacks the key "input"', 'add "input", a list of rows')
    output = pair.get("output")
    if output is None and output_required:
        refuse(place, 'lacks the key "output"', 'add "output", a list of rows, or take the pair out')
    if output in ([], [[]], "") and not output_required:
        refuse(f"{place}, output", "is empty", 'write null, or leave "output" out, if the answer is not known')
    grid = _parse_grid(pair["input"], f"{place}, input")
    return Pair(grid, None if output is None else _parse_grid(output, f"{place}, output"))


def _parse_grid(rows: Any, place: str) -> UInt8[np.ndarray, "h w"]:
    _check_list(rows, place, "rows", "a grid has at least one row")
    for index, row in enumerate(rows):
        here = f"{place}, row {index}"
        _check_list(row, here, "colours", "a row has at least one colour")
        if len(row) != len(rows[0]):
            refuse(here, f"has {len(row)} colours, row 0 has {len(rows[0])}", "make all rows of a grid equally long")
        # The types are compared as well because True and 1.0 are equal to the colour 1.
        if set(map(type, row)) != {int} or not _COLORS.issuperset(row):
            column = next(c for c, color in enumerate(row) if type(color) is not int or color not in _COLORS)
            needed = f"a colour is an integer from 0 to {NUM_COLORS - 1}"
            refuse(f"{here}, column {column}", f"holds {_shortened(row[column])}", needed)
    grid = np.array(rows, dtype=np.uint8)
    grid.setflags(write=False)
    return grid


def _check_list(value: object, place: str, items: str, needed: str) -> None:
    if not isinstance(value, list):
        refuse(place, f"is {_kind(value)}", f"write a list of {items}")
    if not value:
        refuse(place, "is empty", needed)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shortened(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge integer"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
