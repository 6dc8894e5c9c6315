"""The tasks of a configuration: those that a run trains on, those that it scores, and those that it leaves out."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import datasets
import numpy as np
from jaxtyping import Float64, Int

from arcdist.config import DataConfig
from arcdist.data import NUM_COLORS, LeakReport, Origin, Task, build_queries, check_leaks, read_tasks, select_tasks
from arcdist.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """The tasks of one source and split."""

    origin: Origin
    tasks: tuple[Task, ...]
    """All, by id."""
    used: tuple[Task, ...]
    """Those that `data.max_side` and `data.max_tasks` leave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """What a configuration trains on and what it scores; the same shelf where there is no source for validation."""

    data: DataConfig
    training: Shelf
    validation: Shelf

    @property
    def shelves(self) -> tuple[Shelf, ...]:
        """The different ones."""
        return (self.training,) if self.validation is self.training else (self.training, self.validation)

    def find(self, task_id: str, kind: Literal["train", "test"]) -> tuple[Task, Shelf]:
        """A task and where it lies: for a train query first among the trained ones, else among the scored.

        Raises:
            ConfigError: it is in none; the message names the nearest ids.
        """
        for shelf in self.shelves if kind == "train" else reversed(self.shelves):
            for task in shelf.tasks:
                if task.id == task_id:
                    return task, shelf
        ids = sorted({task.id for shelf in self.shelves for task in shelf.tasks})
        near = get_close_matches(task_id, ids, n=3)
        hint = f"The nearest: {', '.join(near)}." if near else f"Its ids are like {ids[0]}."
        where = " and ".join(str(shelf.origin) for shelf in self.shelves)
        raise ConfigError(
            f"There is no task {task_id!r} in {where}. {hint} Other tasks: --data.source, --data.split, "
            f"--data.validation_source."
        )

    def exclusion(self, task: Task, kind: Literal["train", "test"]) -> str | None:
        """Why a run does not ask a task's queries of a kind, in a sentence; none where it does."""
        shelf = self.training if kind == "train" else self.validation
        verb = "train on" if kind == "train" else "score"
        if _holds(shelf.used, task):
            return None
        if not _holds(shelf.tasks, task):
            return f"A run would not {verb} it: it is not in {shelf.origin}."
        if task.longest_side > self.data.max_side:
            return (
                f"A run would not {verb} it: its longest side is {task.longest_side}, "
                f"data.max_side is {self.data.max_side}."
            )
        return f"A run would not {verb} it: it is not among the first data.max_tasks = {self.data.max_tasks}."


def read_catalogue(data: DataConfig) -> Catalogue:
    """Read the tasks of a configuration.

    Raises:
        DataError: a source cannot be read, one of its tasks is not ARC, or no task is left.
    """
    training = _read(Origin(data.source, data.split), data)
    if data.validation_source is None:
        return Catalogue(data=data, training=training, validation=training)
    validation = _read(Origin(data.validation_source, data.validation_split), data)
    return Catalogue(data=data, training=training, validation=validation)


def _read(origin: Origin, data: DataConfig) -> Shelf:
    tasks = read_tasks(*origin)
    used = select_tasks(tasks, origin.source, data.max_side, data.max_tasks)
    return Shelf(origin=origin, tasks=tuple(tasks), used=tuple(used))


def _holds(tasks: Sequence[Task], task: Task) -> bool:
    return any(held is task for held in tasks)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskStatistics:
    """The tasks of one source that a run uses, and how many it leaves out."""

    tasks: int
    too_large: int
    """Left out: a side is longer than `data.max_side`."""
    too_many: int
    """Left out: they come after the first `data.max_tasks`."""
    demonstrations: int
    single: int
    """Tasks with one demonstration, which give no training query."""
    tests: int
    unknown: int
    """Test pairs without a known output."""
    same_size: int
    """Tasks whose outputs, as far as they are known, are as large as their inputs."""
    sides: Int[np.ndarray, " sides"]
    """Height and width of each grid."""
    cells: Int[np.ndarray, " grids"]
    """Of each grid."""
    color_cells: Int[np.ndarray, "10"]
    """Cells of each colour."""
    color_tasks: Int[np.ndarray, "10"]
    """Tasks that show each colour."""

    @property
    def color_shares(self) -> Float64[np.ndarray, "10"]:
        """Share of each colour in all cells."""
        return np.divide(self.color_cells, self.color_cells.sum())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueryLengths:
    """Tokens of queries, before any augmentation."""

    ids: tuple[str, ...]
    lengths: Int[np.ndarray, " queries"]

    @property
    def longest(self) -> tuple[str, int]:
        """Name and length of the longest, the first of them."""
        row = int(self.lengths.argmax())
        return self.ids[row], int(self.lengths[row])


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts between edges at round numbers."""

    width: int
    """Of a bin; the first begins at 0."""
    counts: tuple[tuple[int, ...], ...]
    """Of each sample, by bin."""


def count_tasks(shelf: Shelf, max_side: int) -> TaskStatistics:
    """Count what is used of a source, and what is not."""
    tasks = shelf.used
    too_large = sum(task.longest_side > max_side for task in shelf.tasks)
    pairs = [pair for task in tasks for pair in task.demonstrations + task.tests]
    grids = [grid for pair in pairs for grid in pair.grids()]
    by_task = np.stack([_colors(task) for task in tasks])
    return TaskStatistics(
        tasks=len(tasks),
        too_large=too_large,
        too_many=len(shelf.tasks) - too_large - len(tasks),
        demonstrations=sum(len(task.demonstrations) for task in tasks),
        single=sum(len(task.demonstrations) == 1 for task in tasks),
        tests=sum(len(task.tests) for task in tasks),
        unknown=sum(pair.output is None for task in tasks for pair in task.tests),
        same_size=sum(_keeps_size(task) for task in tasks),
        sides=np.array([side for grid in grids for side in grid.shape]),
        cells=np.array([grid.size for grid in grids]),
        color_cells=by_task.sum(axis=0),
        color_tasks=(by_task > 0).sum(axis=0),
    )


def count_tokens(queries: datasets.Dataset) -> QueryLengths:
    """Lengths as the batches are made from."""
    return QueryLengths(ids=tuple(queries["id"][:]), lengths=np.array(queries["length"][:]))


def histogram(samples: Sequence[Int[np.ndarray, " _"]], most_bins: int = 20) -> Histogram:
    """Count samples in the narrowest common bins of 1, 2 or 5 times a power of ten that are at most `most_bins`."""
    largest = max(int(sample.max()) for sample in samples)
    widths = (factor * 10**power for power in range(10) for factor in (1, 2, 5))
    width = next(width for width in widths if largest // width < most_bins)
    bins = largest // width + 1
    return Histogram(
        width=width,
        counts=tuple(tuple(np.bincount(sample // width, minlength=bins).tolist()) for sample in samples),
    )


def _colors(task: Task) -> Int[np.ndarray, "10"]:
    cells = np.concatenate([grid.ravel() for pair in task.demonstrations + task.tests for grid in pair.grids()])
    return np.bincount(cells, minlength=NUM_COLORS)


def _keeps_size(task: Task) -> bool:
    pairs = task.demonstrations + task.tests
    return all(pair.output is None or pair.input.shape == pair.output.shape for pair in pairs)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overview:
    """All numbers of a configuration's data."""

    sources: dict[str, TaskStatistics]
    """By source and split: the one that is trained on, then the one that is scored, where that is another."""
    training: QueryLengths
    """The queries that are trained on: demonstrations held out."""
    validation: QueryLengths
    """The queries that are scored: test pairs."""
    scored: int
    """Those of them whose output is known."""
    leaks: LeakReport | DataError
    """What the leak guard found, or its refusal."""


def survey(catalogue: Catalogue) -> Overview:
    """Count a configuration's data.

    Raises:
        DataError: there is nothing to train on, or nothing to ask in validation.
        PlatformError: the cache of prepared queries cannot be written.
    """
    training, validation = catalogue.training, catalogue.validation
    leaks: LeakReport | DataError
    try:
        leaks = check_leaks(
            training.used, validation.used, training.origin, validation.origin, catalogue.data.allow_overlap
        )
    except DataError as error:
        leaks = error
    return Overview(
        sources={str(shelf.origin): count_tasks(shelf, catalogue.data.max_side) for shelf in catalogue.shelves},
        training=count_tokens(build_queries(training.used, "train")),
        validation=count_tokens(build_queries(validation.used, "test")),
        scored=sum(pair.output is not None for task in validation.used for pair in task.tests),
        leaks=leaks,
    )
