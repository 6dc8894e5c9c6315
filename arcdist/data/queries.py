"""Queries: input grids whose outputs are asked for, with the pairs that are shown beside them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from jaxtyping import Bool, Int, UInt8

from arcdist.data.batch import working_area
from arcdist.data.tasks import Pair, Task, tasks_digest
from arcdist.data.text import grid_tokens
from arcdist.errors import DataError, PlatformError
from arcdist.rng import stream

# Q queries, R pairs of all tasks, q queries of one task, D its demonstrations.


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence the bars of `datasets` inside the block: arcdist draws its own."""
    was_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            datasets.enable_progress_bars()


Kind = Literal["train", "test"]

_LAYOUT = 3
"""Part of the cached file's name, to be increased if a row changes for the same tasks."""
_COLUMNS = datasets.Features(
    {"sides": datasets.List(datasets.Value("uint8")), "cells": datasets.List(datasets.Value("uint8"))}
)


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One input grid whose output is asked for, with the pairs that demonstrate the transformation."""

    id: str
    """`<task id>:<train|test>:<pair index>`."""
    task_id: str
    context: tuple[Pair, ...]
    """Pairs with outputs, at least one; never the pair that the query is made from."""
    input: UInt8[np.ndarray, "h w"]
    target: UInt8[np.ndarray, "p q"] | None
    """The answer; None if it is not known."""

    def __post_init__(self) -> None:
        if not self.context:
            raise ValueError(f"query {self.id} has no context pair")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Asked:
    """A task with queries: its rows in the table of pairs, and its queries."""

    id: str
    first: int
    """Row of its first demonstration; the others follow, then its test pairs."""
    demonstrations: int
    queries: slice


@dataclass(frozen=True, kw_only=True, eq=False)
class Queries:
    """The queries of one kind that a set of tasks has, in the order of the tasks; `build_queries` makes them.

    A query's context is the task's other demonstrations. `limited` bounds it: then a query with more draws its context
    anew each epoch.
    """

    kind: Kind
    ids: list[str]
    tasks: list[str]
    """Id of each query's task."""
    pairs: datasets.Dataset
    """Sides and cells of each pair of all tasks: the demonstrations of a task, then its test pairs."""
    rows: Int[np.ndarray, " Q"]
    """Row of the pair that each query asks."""
    asked: tuple[_Asked, ...]
    pair_tokens: Int[np.ndarray, " R"]
    """Tokens of each pair as context, as `GridTokenizer` writes them."""
    input_tokens: Int[np.ndarray, " Q"]
    """Tokens of each query's input and of the mark that its output would follow."""
    output_tokens: Int[np.ndarray, " Q"]
    """Tokens of each query's output and of the mark that ends it, as a model that learns to write it reads them; 0 if
    it is not known."""
    areas: Int[np.ndarray, "Q 2"]
    """Height and width of each query's working area, all its context shown."""
    max_pairs: int | None = None
    """Most context pairs of a query, at least 1; None if all are shown."""
    max_tokens: int | None = None
    """Most tokens of a query with its context; None if any number."""
    seed: int = 0
    """Of the draws of contexts."""
    outputs_are_read: bool = False
    """Whether the model reads each query's output after its prompt, to learn to write it."""

    def __len__(self) -> int:
        return len(self.ids)

    def limited(
        self, max_pairs: int | None, max_tokens: int | None, *, seed: int = 0, outputs_are_read: bool = False
    ) -> "Queries":
        """The same queries with at most so many context pairs, or fewer if these exceed so many tokens.

        Args:
            max_pairs: at least 1, or None.
            max_tokens: that a query with its context may have, or None; its output is not among them.
            seed: of the draws.
            outputs_are_read: whether `lengths` counts the outputs too.

        Raises:
            DataError: a query exceeds `max_tokens` with its shortest context pair alone.
        """
        if max_tokens is not None and (too_long := self.too_long(max_tokens)):
            raise DataError(
                f"{next(iter(too_long.values()))}: lower data.max_side, which leaves out tasks with large grids, or "
                f"choose a model with more positions."
            )
        return replace(self, max_pairs=max_pairs, max_tokens=max_tokens, seed=seed, outputs_are_read=outputs_are_read)

    def too_long(self, max_tokens: int) -> dict[int, str]:
        """The queries that exceed so many tokens with their shortest context pair alone: their numbers, and a problem.

        Of each task the longest is first.
        """
        problems = {}
        for task in self.asked:
            tokens = self._demonstration_tokens(task)
            least = self.input_tokens[task.queries] + tokens.min()
            if self.kind == "train":
                shortest, others = int(tokens.argmin()), np.sort(tokens)[1]
                least[shortest] += others - tokens[shortest]
            for place in np.argsort(-least, kind="stable").tolist():
                if least[place] > max_tokens:
                    query = task.queries.start + place
                    problems[query] = (
                        f"Query {self.ids[query]} has {least[place]:,} tokens with its shortest context pair alone, "
                        f"and qwen.model has positions for {max_tokens:,}"
                    )
        return problems

    def sizes(self, epoch: int = 0, *, by_side: bool) -> Int[np.ndarray, " Q"]:
        """What queries are sorted by into batches that waste little: their length, or first the side of their area."""
        lengths = self.lengths(epoch)
        return self.areas.max(axis=1) * (lengths.max() + 1) + lengths if by_side else lengths

    def lengths(self, epoch: int = 0) -> Int[np.ndarray, " Q"]:
        """Tokens that the model reads of each query in an epoch: its context and input, its output only if it is read.

        Without outputs they do not depend on the target.
        """
        lengths = self._whole_lengths.copy()
        for task in self._drawing:
            tokens = self._draw(task, epoch) @ self._demonstration_tokens(task)
            lengths[task.queries] = self.input_tokens[task.queries] + tokens
        return lengths + self.output_tokens if self.outputs_are_read else lengths

    def context_sizes(self, epoch: int = 0) -> Int[np.ndarray, " Q"]:
        """How many pairs each query is shown in an epoch."""
        sizes = np.zeros(len(self), dtype=np.int64)
        for task in self.asked:
            others = task.demonstrations - (self.kind == "train")
            sizes[task.queries] = self._draw(task, epoch).sum(axis=1) if task in self._drawing else others
        return sizes

    def context(self, query: int, epoch: int = 0) -> list[int]:
        """Which demonstrations of its task a query is shown in an epoch, ascending."""
        task = self._task_of_query[query]
        if task in self._drawing:
            return self._draw(task, epoch)[query - task.queries.start].nonzero()[0].tolist()
        own = self.rows[query] - task.first
        return [place for place in range(task.demonstrations) if place != own]

    def of_task(self, task_id: str) -> range:
        """The numbers of a task's queries; empty if it has none."""
        queries = self._queries_of_task.get(task_id, slice(0, 0))
        return range(queries.start, queries.stop)

    @cached_property
    def drawn(self) -> Bool[np.ndarray, " Q"]:
        """Which queries are shown only some of the pairs that they could be."""
        others = np.zeros(len(self), dtype=np.int64)
        for task in self.asked:
            others[task.queries] = task.demonstrations - (self.kind == "train")
        most_pairs = np.inf if self.max_pairs is None else self.max_pairs
        most_tokens = np.inf if self.max_tokens is None else self.max_tokens
        drawn: Bool[np.ndarray, " Q"] = (others > most_pairs) | (self._whole_lengths > most_tokens)
        return drawn

    def read(self, queries: Sequence[int], epoch: int = 0) -> list[Query]:
        """Queries by their numbers, with the context that they are shown in an epoch."""
        tasks = [self._task_of_query[query] for query in queries]
        rows = [
            [*(task.first + place for place in self.context(query, epoch)), int(self.rows[query])]
            for query, task in zip(queries, tasks, strict=True)
        ]
        pairs = self._read_pairs([row for of_query in rows for row in of_query])
        read = []
        for query, task, of_query in zip(queries, tasks, rows, strict=True):
            *context, own = (next(pairs) for _ in of_query)
            read.append(Query(self.ids[query], task.id, tuple(context), own.input, own.output))
        return read

    @cached_property
    def _queries_of_task(self) -> dict[str, slice]:
        return {task.id: task.queries for task in self.asked}

    @cached_property
    def _task_of_query(self) -> list[_Asked]:
        return [task for task in self.asked for _ in range(task.queries.start, task.queries.stop)]

    @cached_property
    def _drawing(self) -> frozenset[_Asked]:
        return frozenset(task for task in self.asked if self.drawn[task.queries].any())

    @cached_property
    def _whole_lengths(self) -> Int[np.ndarray, " Q"]:
        lengths = self.input_tokens.copy()
        for task in self.asked:
            lengths[task.queries] += self._demonstration_tokens(task).sum()
        return lengths - self.pair_tokens[self.rows] if self.kind == "train" else lengths

    def _demonstration_tokens(self, task: _Asked) -> Int[np.ndarray, " D"]:
        return self.pair_tokens[task.first : task.first + task.demonstrations]

    def _draw(self, task: _Asked, epoch: int) -> Bool[np.ndarray, "q D"]:
        """Which demonstrations each query of a task is shown.

        The demonstrations are put into a circle in random order. A query is shown those that follow its own pair, or
        a random place for a test pair, as far as `max_pairs` and `max_tokens` permit; one that is too long is passed
        over. So all queries of a task, which differ in their places, need one draw.
        """
        count, num_queries = task.demonstrations, task.queries.stop - task.queries.start
        rng = stream(self.seed, "context", epoch, task.id)
        circle = rng.permutation(count)
        is_train = self.kind == "train"
        before = np.argsort(circle) if is_train else rng.integers(count, size=num_queries)
        tokens, every = self._demonstration_tokens(task), np.arange(num_queries)
        shown = np.zeros((num_queries, count), dtype=bool)
        most_pairs = count if self.max_pairs is None else self.max_pairs
        pairs_left = np.full(num_queries, most_pairs)
        tokens_left = (np.inf if self.max_tokens is None else self.max_tokens) - self.input_tokens[task.queries]
        for distance in range(1, count + (not is_train)):
            candidate = circle[(before + distance) % count]
            fits = (pairs_left > 0) & (tokens[candidate] <= tokens_left)
            shown[every, candidate] = fits
            pairs_left -= fits
            tokens_left = tokens_left - fits * tokens[candidate]
            if not pairs_left.any():
                break
        return shown

    def _read_pairs(self, rows: Sequence[int]) -> Iterator[Pair]:
        table = self.pairs[list(rows)]
        for sides, cells in zip(_arrays(table["sides"]), _arrays(table["cells"]), strict=True):
            height, width, *output = sides.tolist()
            size = height * width
            yield Pair(cells[:size].reshape(height, width), cells[size:].reshape(output) if output else None)


def build_queries(tasks: Sequence[Task], kind: Kind) -> Queries:
    """Make the queries of a set of tasks.

    `train` holds out each demonstration in turn, the task's other demonstrations being the context; a task with a
    single demonstration leaves no context and gives no such query. `test` asks each test pair, with all demonstrations
    as context.

    The pairs are kept in the Hugging Face cache under a hash of the tasks' contents: a second call with equal tasks
    reads them back, whatever the kind, and all processes of a machine share them.

    Raises:
        DataError: the tasks ask nothing of this kind.
        PlatformError: the cache cannot be written, or the disk is full.
    """
    asked: list[_Asked] = []
    ids: list[str] = []
    of_task: list[str] = []
    rows: list[int] = []
    areas: list[tuple[int, int]] = []
    tokens: list[tuple[int, int]] = []
    for task in tasks:
        first = len(tokens)
        tokens += [_pair_tokens(pair) for pair in task.demonstrations + task.tests]
        context = len(task.demonstrations) - (kind == "train")
        pairs = task.demonstrations if kind == "train" else task.tests
        if not (context and pairs):
            continue
        own = first if kind == "train" else first + len(task.demonstrations)
        queries = slice(len(ids), len(ids) + len(pairs))
        asked.append(_Asked(id=task.id, first=first, demonstrations=len(task.demonstrations), queries=queries))
        ids += [f"{task.id}:{kind}:{index}" for index in range(len(pairs))]
        for asks in pairs:
            others = tuple(pair for pair in task.demonstrations if pair is not asks)
            areas.append(working_area(others, asks.input))
        of_task += [task.id] * len(pairs)
        rows += range(own, own + len(pairs))
    if not ids:
        needed = "two or more demonstrations" if kind == "train" else "test pairs"
        raise DataError(f"None of the {len(tasks)} tasks has a {kind} query: give tasks with {needed}.")
    counts, own_rows = np.array(tokens), np.array(rows)
    return Queries(
        kind=kind,
        ids=ids,
        tasks=of_task,
        pairs=_store_pairs(tasks),
        rows=own_rows,
        asked=tuple(asked),
        areas=np.array(areas),
        pair_tokens=counts.sum(axis=1),
        input_tokens=counts[own_rows, 0] + 1,
        output_tokens=counts[own_rows, 1],
    )


def _pair_tokens(pair: Pair) -> tuple[int, int]:
    """Tokens of its input and of its output, which has none if it is not known."""
    written, *output = [grid_tokens(*grid.shape) for grid in pair.grids()]
    return written, output[0] if output else 0


def _store_pairs(tasks: Sequence[Task]) -> datasets.Dataset:
    fingerprint = f"{_LAYOUT}-{tasks_digest(tasks)}"
    places = datasets.Dataset.from_dict({"place": list(range(len(tasks)))})

    def stored(batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        of_batch = [tasks[place] for place in batch["place"]]
        pairs = [list(pair.grids()) for task in of_batch for pair in task.demonstrations + task.tests]
        return {
            "sides": [np.array([grid.shape for grid in grids], dtype=np.uint8).ravel() for grids in pairs],
            "cells": [np.concatenate([grid.ravel() for grid in grids]) for grids in pairs],
        }

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "arcdist"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with no_progress_bars():
            pairs = places.map(
                stored,
                batched=True,
                batch_size=100,
                remove_columns="place",
                features=_COLUMNS,
                new_fingerprint=fingerprint,
                cache_file_name=str(folder / f"pairs-{fingerprint}.arrow"),
                load_from_cache_file=True,
            )
    except OSError as error:
        raise PlatformError(
            f"The Hugging Face cache {folder} cannot be written ({error.strerror or error}): "
            f"make room there, or set HF_HOME or HF_DATASETS_CACHE to a folder that can."
        ) from error
    return pairs.with_format("arrow")


def _arrays(column: Any) -> Iterator[UInt8[np.ndarray, " values"]]:
    lists = column.combine_chunks()
    values = lists.values.to_numpy()
    return (values[start:end] for start, end in pairwise(lists.offsets.to_pylist()))
