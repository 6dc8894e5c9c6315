"""The data of a configuration in numbers, on the terminal and as a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from jaxtyping import Float64, Int
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.console import Console, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from arcdist.config import DataConfig
from arcdist.data import NUM_COLORS, LeakReport, TaskSet, TaskSets, build_queries
from arcdist.errors import ConfigError, DataError
from arcdist.files import replacing
from arcdist.tracking.grids import ARC_COLORS, has_colors
from arcdist.tracking.plots import BLUE, VERMILION

_LONGEST_BAR = 18
_PAIR = (BLUE, VERMILION)


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
    color_shares: Float64[np.ndarray, "10"]
    """Share of each colour in all cells."""
    color_tasks: Int[np.ndarray, "10"]
    """Tasks that show each colour."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueryLengths:
    """Tokens of queries, before any augmentation."""

    ids: tuple[str, ...]
    lengths: Int[np.ndarray, " queries"]

    @property
    def longest(self) -> str:
        """Id of the longest, the first of them."""
        return self.ids[int(self.lengths.argmax())]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overview:
    """All numbers of a configuration's data."""

    sources: dict[str, TaskStatistics]
    """By source and split: what is trained on, then what is scored if that is another."""
    training: QueryLengths
    """The queries that are trained on: demonstrations held out."""
    validation: QueryLengths
    """The queries that are scored: test pairs."""
    scored: int
    """Those of them whose output is known."""
    leaks: LeakReport | DataError
    """What the leak guard found, or its refusal."""


def survey(sets: TaskSets, data: DataConfig) -> Overview:
    """Count a configuration's data.

    Raises:
        DataError: there is nothing to train on, or nothing to ask in validation.
        PlatformError: the cache of prepared queries cannot be written.
    """
    leaks: LeakReport | DataError
    try:
        leaks = sets.check_leaks(data.allow_overlap)
    except DataError as error:
        leaks = error
    return Overview(
        sources={str(tasks.origin): _count_tasks(tasks, data.max_side) for tasks in sets.distinct},
        training=_count_tokens(build_queries(sets.training.used, "train")),
        validation=_count_tokens(build_queries(sets.validation.used, "test")),
        scored=sets.scored_pairs,
        leaks=leaks,
    )


def _count_tasks(tasks: TaskSet, max_side: int) -> TaskStatistics:
    used = tasks.used
    too_large = sum(task.longest_side > max_side for task in tasks.tasks)
    pairs = [task.demonstrations + task.tests for task in used]
    grids = [[grid for pair in of_task for grid in pair.grids()] for of_task in pairs]
    colors = np.array(
        [np.bincount(np.concatenate([*map(np.ravel, of_task)]), minlength=NUM_COLORS) for of_task in grids]
    )
    all_grids = [grid for of_task in grids for grid in of_task]
    return TaskStatistics(
        tasks=len(used),
        too_large=too_large,
        too_many=len(tasks.tasks) - too_large - len(used),
        demonstrations=sum(len(task.demonstrations) for task in used),
        single=sum(len(task.demonstrations) == 1 for task in used),
        tests=sum(len(task.tests) for task in used),
        unknown=sum(pair.output is None for task in used for pair in task.tests),
        same_size=sum(
            all(pair.output is None or pair.input.shape == pair.output.shape for pair in of_task) for of_task in pairs
        ),
        sides=np.array([side for grid in all_grids for side in grid.shape]),
        cells=np.array([grid.size for grid in all_grids]),
        color_shares=colors.sum(axis=0) / colors.sum(),
        color_tasks=(colors > 0).sum(axis=0),
    )


def _count_tokens(queries: datasets.Dataset) -> QueryLengths:
    return QueryLengths(ids=tuple(queries["id"][:]), lengths=np.array(queries["length"][:]))


def histogram(
    samples: Sequence[Int[np.ndarray, " _"]], most_bins: int = 20
) -> tuple[int, list[Int[np.ndarray, " bins"]]]:
    """Width of the bins, of which the first begins at 0, and the counts of each sample.

    The bins are the narrowest of 1, 2 or 5 times a power of ten that are at most `most_bins`.
    """
    largest = max(int(sample.max()) for sample in samples)
    widths = (factor * 10**power for power in range(10) for factor in (1, 2, 5))
    width = next(width for width in widths if largest // width < most_bins)
    return width, [np.bincount(sample // width, minlength=largest // width + 1) for sample in samples]


def show_data(console: Console, overview: Overview, data: DataConfig) -> None:
    """Print what a configuration's data comes to; a refusal of the leak guard is the caller's to raise."""
    for part in (
        _tasks(overview, data),
        _queries(overview),
        _lengths(overview),
        _colors(overview, colored=has_colors(console)),
        *_leaks(overview),
    ):
        console.print(part)
        console.print()


def plain_table(first: str) -> Table:
    """A table whose first column is not wrapped, without an edge."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    return table


def _source_table(first: str, overview: Overview) -> Table:
    table = plain_table(first)
    for origin in overview.sources:
        table.add_column(origin, justify="right", overflow="fold")
    return table


def _tasks(overview: Overview, data: DataConfig) -> RenderableType:
    columns = []
    for found in overview.sources.values():
        column = {
            "tasks": f"{found.tasks:,}",
            f"left out by data.max_side {data.max_side}": f"{found.too_large:,}",
            f"left out by data.max_tasks {data.max_tasks}": f"{found.too_many:,}",
            "demonstration pairs": f"{found.demonstrations:,}",
            "tasks with one of them only": f"{found.single:,}",
            "test pairs": f"{found.tests:,}",
            "without a known output": f"{found.unknown:,}",
            "outputs as large as inputs": f"{found.same_size:,} tasks, {found.same_size / found.tasks:.1%}",
            "sides": _spread(found.sides),
            "cells of a grid": _spread(found.cells),
        }
        if data.max_tasks is None:
            del column["left out by data.max_tasks None"]
        columns.append(column)
    table = _source_table("tasks", overview)
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def _queries(overview: Overview) -> RenderableType:
    table = plain_table("queries")
    table.add_column("training", justify="right")
    table.add_column("validation", justify="right")
    kinds = (overview.training, overview.validation)
    table.add_row("number", *(f"{len(kind.ids):,}" for kind in kinds))
    table.add_row("with a known output", f"{len(overview.training.ids):,}", f"{overview.scored:,}")
    table.add_row("tokens", *(f"{kind.lengths.sum():,}" for kind in kinds))
    table.add_row("tokens of one", *(_spread(kind.lengths) for kind in kinds))
    table.add_row("the longest", *(kind.longest for kind in kinds))
    return table


def _spread(values: np.ndarray) -> str:
    low, median, high = (int(value) for value in np.quantile(values, (0, 0.5, 1), method="lower"))
    return f"{low:,} to {high:,}, median {median:,}"


def _lengths(overview: Overview) -> RenderableType:
    width, counts = histogram([overview.training.lengths, overview.validation.lengths])
    table = plain_table("tokens of a query")
    table.add_column("training")
    table.add_column("validation")
    # A single query is visible too.
    bars = [
        [f"{count:>6,} {'█' * max(count > 0, round(_LONGEST_BAR * count / kind.max()))}" for count in kind.tolist()]
        for kind in counts
    ]
    for place, (training, validation) in enumerate(zip(*bars, strict=True)):
        table.add_row(f"{place * width:,} to {place * width + width - 1:,}", training, validation)
    return table


def _colors(overview: Overview, *, colored: bool) -> RenderableType:
    table = _source_table("colour: of cells, of tasks", overview)
    for number, color in enumerate(ARC_COLORS):
        name = Text(f"{number} ").append("  ", Style(bgcolor=color) if colored else "")
        values = (
            f"{found.color_shares[number]:.1%}, {found.color_tasks[number] / found.tasks:.1%}"
            for found in overview.sources.values()
        )
        table.add_row(name, *values)
    return table


def _leaks(overview: Overview) -> Iterator[RenderableType]:
    if not overview.scored:
        yield Text("No test pair has a known output: a run would be refused.", style="bold red")
    found = overview.leaks
    if isinstance(found, DataError):
        yield Text("Leak guard: a run would be refused.", style="bold red")
        return
    if len(overview.sources) == 1:
        yield "Leak guard: not needed, as the test pairs of the tasks that are trained on are scored."
    elif found.shared_ids or found.shared_contents:
        yield (
            f"Leak guard: {found.shared_ids:,} scored tasks are trained on by id, {found.shared_contents:,} by "
            f"content ({', '.join(found.examples)}, …), which data.allow_overlap accepts."
        )
    else:
        yield "Leak guard: no scored task is trained on."
    if found.repeated_test_pairs:
        yield f"{found.repeated_test_pairs:,} test pairs are demonstrations of their own task as well."


def draw_data(overview: Overview, path: Path) -> None:
    """Draw the lengths of the queries, the sides of the grids and the colours of their cells.

    Raises:
        ConfigError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 4.2), dpi=100, layout="constrained")
    lengths, sides, colors = figure.subplots(1, 3)

    bin_width, counts = histogram([overview.training.lengths, overview.validation.lengths], most_bins=40)
    edges = bin_width * np.arange(len(counts[0]) + 1)
    lengths.set_title("Tokens of a query, share of the queries")
    for kind, role, color in zip(counts, ("training", "validation"), _PAIR, strict=True):
        number = kind.sum()
        lengths.stairs(kind / number, edges, label=f"{role}: {number:,} queries", color=color, linewidth=2)
    lengths.legend(fontsize="small")

    sides.set_title("Sides of the grids, share of all")
    colors.set_title("Colours, share of all cells")
    width = 0.8 / len(overview.sources)
    for place, (origin, found) in enumerate(overview.sources.items()):
        shift = (place - (len(overview.sources) - 1) / 2) * width
        by_side = np.bincount(found.sides) / len(found.sides)
        sides.bar(np.arange(len(by_side)) + shift, by_side, width, label=origin, color=_PAIR[place])
        # Both have ARC's colours.
        hatch = "////" if place else ""
        colors.bar(np.arange(10) + shift, found.color_shares, width, color=ARC_COLORS, edgecolor="#555555", hatch=hatch)
    if len(overview.sources) > 1:
        sides.legend(fontsize="small")
        colors.set_xlabel("hatched: validation")
    colors.set_xticks(range(10))
    for axes in (lengths, sides, colors):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (lengths, sides):
        axes.margins(y=0.2)  # room for the legend
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    save_picture(figure, path)


def save_picture(figure: Figure, path: Path) -> None:
    """Write the file of `--picture`.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
    except OSError as error:
        raise ConfigError(f"--picture {path} cannot be written ({error.strerror}): choose another file.") from error
