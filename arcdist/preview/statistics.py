"""What tasks and their queries come to, in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
from jaxtyping import Float64, Int

from arcdist.data import NUM_COLORS, Task
from arcdist.preview.catalogue import Shelf


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
