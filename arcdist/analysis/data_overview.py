"""The data of a configuration in numbers, on the terminal and as a picture."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.console import Console, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from arcdist.config import DataConfig
from arcdist.data import NUM_COLORS, LeakReport, Pair, Queries, Task, TaskSet, TaskSets, build_queries, read_task_sets
from arcdist.data.queries import Kind
from arcdist.errors import ConfigError, DataError, reason
from arcdist.files import replacing
from arcdist.tracking.grids import ARC_COLORS, has_colors
from arcdist.tracking.plots import BLUE, VERMILION

_LONGEST_BAR = 18
_PAIR = (BLUE, VERMILION)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overview:
    """A configuration's data, counted."""

    sets: TaskSets
    training: Queries
    """The queries that are trained on: demonstrations held out."""
    validation: Queries
    """The queries that are scored: test pairs."""
    leaks: LeakReport | DataError
    """What the leak guard found, or its refusal."""


def survey(data: DataConfig) -> Overview:
    """Read and count a configuration's data.

    Raises:
        DataError: a source cannot be read, or there is nothing to train on or to ask in validation.
        PlatformError: the cache of prepared queries cannot be written.
    """
    sets = read_task_sets(data)
    if not any(task.tests for task in sets.validation.used):
        sets.check_scored()
    leaks: LeakReport | DataError
    try:
        leaks = sets.check_leaks(data.allow_overlap)
    except DataError as error:
        leaks = error

    def queries(tasks: TaskSet, kind: Kind) -> Queries:
        # How many tokens fit is the model's to say, and none is needed for this.
        return build_queries(tasks.used, kind).limited(data.max_context_pairs, None)

    return Overview(
        sets=sets,
        training=queries(sets.training, "train"),
        validation=queries(sets.validation, "test"),
        leaks=leaks,
    )


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


def _tokens(overview: Overview) -> list[Int[np.ndarray, " queries"]]:
    return [queries.lengths() for queries in (overview.training, overview.validation)]


def _pairs(task: Task) -> tuple[Pair, ...]:
    return task.demonstrations + task.tests


def _sides(tasks: TaskSet) -> Int[np.ndarray, "grids 2"]:
    """Height and width of each grid."""
    return np.array([grid.shape for task in tasks.used for pair in _pairs(task) for grid in pair.grids()])


def _color_cells(tasks: TaskSet) -> Int[np.ndarray, "tasks 10"]:
    """Cells of each colour in each task."""
    cells = (np.concatenate([grid.ravel() for pair in _pairs(task) for grid in pair.grids()]) for task in tasks.used)
    return np.array([np.bincount(of_task, minlength=NUM_COLORS) for of_task in cells])


def show_data(console: Console, overview: Overview, data: DataConfig) -> None:
    """Print what a configuration's data comes to; a refusal of the leak guard is the caller's to raise."""
    distinct = overview.sets.distinct
    origins = [str(tasks.origin) for tasks in distinct]
    columns, left_out = [_count_tasks(tasks) for tasks in distinct], [tasks.left_out(data) for tasks in distinct]
    # What ARC's limit leaves out is no wish of the configuration, and rare.
    limits = dict.fromkeys(
        limit for of in left_out for limit, count in of.items() if count or limit.startswith("data.")
    )
    rows = [
        ("tasks", *(f"{len(tasks.used):,}" for tasks in distinct)),
        *((f"left out by {limit}", *(f"{of[limit]:,}" for of in left_out)) for limit in limits),
        *((name, *(column[name] for column in columns)) for name in columns[0]),
    ]
    console.print(table("tasks", origins, rows))
    console.print()
    roles, tokens = ("training", "validation"), _tokens(overview)
    ids = (overview.training.ids, overview.validation.ids)
    drawn = [int(queries.drawn.sum()) for queries in (overview.training, overview.validation)]
    rows = [
        ("number", *(f"{len(kind):,}" for kind in ids)),
        ("with a known output", f"{len(ids[0]):,}", f"{overview.sets.scored_pairs:,}"),
        *([(f"that see {data.max_context_pairs} of their pairs", *(f"{count:,}" for count in drawn))] * any(drawn)),
        ("tokens", *(f"{lengths.sum():,}" for lengths in tokens)),
        ("tokens of one", *map(_spread, tokens)),
        ("the longest", *(kind[int(lengths.argmax())] for kind, lengths in zip(ids, tokens, strict=True))),
    ]
    console.print(table("queries", roles, rows))
    console.print()
    width, counts = histogram(tokens)
    bins = [f"{start:,} to {start + width - 1:,}" for start in range(0, width * len(counts[0]), width)]
    console.print(table("tokens of a query", roles, zip(bins, *map(_bars, counts), strict=True), justify="left"))
    console.print()
    console.print(table("colour: of cells, of tasks", origins, _colors(distinct, colored=has_colors(console))))
    console.print()
    for line in _leaks(overview):
        console.print(line)
        console.print()


def table(
    first: str,
    others: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    justify: Literal["left", "right"] = "right",
) -> Table:
    """A table without an edge, whose first column is not wrapped."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    made.add_column(first, no_wrap=True)
    for name in others:
        made.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def _count_tasks(tasks: TaskSet) -> dict[str, str]:
    """What the tasks that a run uses come to."""
    used, sides = tasks.used, _sides(tasks)
    same_size = sum(
        all(pair.output is None or pair.input.shape == pair.output.shape for pair in _pairs(task)) for task in used
    )
    return {
        "demonstration pairs": f"{sum(len(task.demonstrations) for task in used):,}",
        "tasks with one of them only": f"{sum(len(task.demonstrations) == 1 for task in used):,}",
        "test pairs": f"{sum(len(task.tests) for task in used):,}",
        "without a known output": f"{sum(pair.output is None for task in used for pair in task.tests):,}",
        "outputs as large as inputs": f"{same_size:,} tasks, {same_size / len(used):.1%}",
        "sides": _spread(sides.ravel()),
        "cells of a grid": _spread(sides.prod(axis=1)),
    }


def _spread(values: Int[np.ndarray, " _"]) -> str:
    low, median, high = (int(value) for value in np.quantile(values, (0, 0.5, 1), method="lower"))
    return f"{low:,} to {high:,}, median {median:,}"


def _bars(counts: Int[np.ndarray, " bins"]) -> list[str]:
    # A single query is visible too.
    lengths = np.maximum(counts > 0, np.round(_LONGEST_BAR * counts / counts.max()).astype(int))
    return [f"{count:>6,} {'█' * length}" for count, length in zip(counts.tolist(), lengths.tolist(), strict=True)]


def _colors(distinct: Sequence[TaskSet], *, colored: bool) -> Iterator[Sequence[str | Text]]:
    cells = [_color_cells(tasks) for tasks in distinct]
    for number, color in enumerate(ARC_COLORS):
        name = Text(f"{number} ").append("  ", Style(bgcolor=color) if colored else "")
        yield name, *(f"{of[:, number].sum() / of.sum():.1%}, {(of[:, number] > 0).mean():.1%}" for of in cells)


def _leaks(overview: Overview) -> Iterator[RenderableType]:
    if not overview.sets.scored_pairs:
        yield Text("No test pair has a known output: a run would be refused.", style="bold red")
    found = overview.leaks
    if isinstance(found, DataError):
        yield Text("Leak guard: a run would be refused.", style="bold red")
        return
    if len(overview.sets.distinct) == 1:
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

    bin_width, counts = histogram(_tokens(overview), most_bins=40)
    edges = bin_width * np.arange(len(counts[0]) + 1)
    lengths.set_title("Tokens of a query, share of the queries")
    for kind, role, color in zip(counts, ("training", "validation"), _PAIR, strict=True):
        number = kind.sum()
        lengths.stairs(kind / number, edges, label=f"{role}: {number:,} queries", color=color, linewidth=2)
    lengths.legend(fontsize="small")

    sides.set_title("Sides of the grids, share of all")
    colors.set_title("Colours, share of all cells")
    distinct = overview.sets.distinct
    width = 0.8 / len(distinct)
    for place, tasks in enumerate(distinct):
        shift = (place - (len(distinct) - 1) / 2) * width
        by_side = np.bincount(_sides(tasks).ravel())
        sides.bar(
            np.arange(len(by_side)) + shift, by_side / by_side.sum(), width, label=str(tasks.origin), color=_PAIR[place]
        )
        by_color = _color_cells(tasks).sum(axis=0)
        # Both have ARC's colours.
        hatch = "////" if place else ""
        colors.bar(
            np.arange(10) + shift, by_color / by_color.sum(), width, color=ARC_COLORS, edgecolor="#555555", hatch=hatch
        )
    if len(distinct) > 1:
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
        raise ConfigError(f"--picture {path} cannot be written ({reason(error)}): choose another file.") from error
