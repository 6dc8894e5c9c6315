"""Queries: input grids whose outputs are asked for, held in `datasets`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from jaxtyping import UInt8

from arcdist.data.tasks import Pair, Task, tasks_digest
from arcdist.errors import DataError, PlatformError


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

_LAYOUT = 2  # Increase it if a row changes for the same tasks: it is part of the cached file's name.
_COLUMNS = datasets.Features(
    {
        "id": datasets.Value("string"),
        "task": datasets.Value("string"),
        "length": datasets.Value("int32"),
        "sides": datasets.List(datasets.Value("uint8")),
        "cells": datasets.List(datasets.Value("uint8")),
    }
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


def build_queries(tasks: Sequence[Task], kind: Kind) -> datasets.Dataset:
    """Make the queries of a set of tasks, one a row, in the order of the tasks.

    `train` holds out each demonstration in turn, the task's other demonstrations being the context; a task with a
    single demonstration leaves no context and gives no such query. `test` asks each test pair, with all demonstrations
    as context. `read_queries` turns rows into `Query`.

    The rows are kept in the Hugging Face cache under a hash of the tasks' contents: a second call with equal tasks
    reads them back. Columns besides the contents: `id`, `task` and `length` (tokens of what is read as text), which
    does not depend on the target.

    Raises:
        DataError: the tasks ask nothing of this kind.
        PlatformError: the cache cannot be written, or the disk is full.
    """
    fingerprint = f"{kind}-{_LAYOUT}-{tasks_digest(tasks)}"
    places = datasets.Dataset.from_dict({"place": list(range(len(tasks)))})

    def rows(batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        made = [_row(query) for query in _queries((tasks[place] for place in batch["place"]), kind)]
        return {column: [row[column] for row in made] for column in _COLUMNS}

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "arcdist"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with no_progress_bars():
            queries = places.map(
                rows,
                batched=True,
                remove_columns="place",
                features=_COLUMNS,
                new_fingerprint=fingerprint,
                cache_file_name=str(folder / f"queries-{fingerprint}.arrow"),
                load_from_cache_file=True,
            )
    except OSError as error:
        raise PlatformError(
            f"The Hugging Face cache {folder} cannot be written ({error.strerror or error}): "
            f"make room there, or set HF_HOME or HF_DATASETS_CACHE to a folder that can."
        ) from error
    if len(queries) == 0:
        needed = "two or more demonstrations" if kind == "train" else "test pairs"
        raise DataError(f"None of the {len(tasks)} tasks has a {kind} query: give tasks with {needed}.")
    return queries


def read_queries(queries: datasets.Dataset, rows: Sequence[int]) -> list[Query]:
    """Read rows that `build_queries` made; quicker if the data set has the format "arrow" already."""
    table = (queries if queries.format["type"] == "arrow" else queries.with_format("arrow"))[list(rows)]
    names = zip(table["id"].to_pylist(), table["task"].to_pylist(), strict=True)
    contents = zip(_arrays(table["sides"]), _arrays(table["cells"]), strict=True)
    return [
        _query(query_id, task_id, sides.reshape(-1, 2).tolist(), cells)
        for (query_id, task_id), (sides, cells) in zip(names, contents, strict=True)
    ]


def _queries(tasks: Iterable[Task], kind: Kind) -> Iterator[Query]:
    for task in tasks:
        for index, pair in enumerate(task.demonstrations if kind == "train" else task.tests):
            held_out = index if kind == "train" else len(task.demonstrations)
            context = task.demonstrations[:held_out] + task.demonstrations[held_out + 1 :]
            if context:
                yield Query(f"{task.id}:{kind}:{index}", task.id, context, pair.input, pair.output)


def _row(query: Query) -> dict[str, Any]:
    seen = [grid for pair in query.context for grid in pair.grids()] + [query.input]
    grids = seen if query.target is None else [*seen, query.target]
    return {
        "id": query.id,
        "task": query.task_id,
        "length": 1 + sum(1 + grid.shape[0] * (grid.shape[1] + 1) for grid in seen),  # as `GridTokenizer` writes them
        "sides": np.array([grid.shape for grid in grids], dtype=np.uint8).ravel(),
        "cells": np.concatenate([grid.ravel() for grid in grids]),
    }


def _query(query_id: str, task_id: str, sides: list[list[int]], cells: UInt8[np.ndarray, " cells"]) -> Query:
    # Input and output of each context pair, the query's input and, if it is known, its target.
    ends = accumulate((height * width for height, width in sides), initial=0)
    grids = [cells[start:end].reshape(shape) for (start, end), shape in zip(pairwise(ends), sides, strict=True)]
    num_pairs = (len(grids) - 1) // 2
    context = tuple(Pair(grids[2 * pair], grids[2 * pair + 1]) for pair in range(num_pairs))
    target = grids[-1] if len(grids) == 2 * num_pairs + 2 else None
    return Query(query_id, task_id, context, grids[2 * num_pairs], target)


def _arrays(column: Any) -> Iterator[UInt8[np.ndarray, " values"]]:
    lists = column.combine_chunks()
    values = lists.values.to_numpy()
    return (values[start:end] for start, end in pairwise(lists.offsets.to_pylist()))
