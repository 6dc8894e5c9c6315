"""The same as PNG pictures: the grids of a query, and the numbers of a data source."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from arcdist.errors import ConfigError
from arcdist.preview.given import Given
from arcdist.preview.layout import Panel, Strip
from arcdist.preview.overview import Overview
from arcdist.preview.statistics import histogram
from arcdist.preview.strips import strips_of
from arcdist.tracking.atomic import replacing
from arcdist.tracking.grids import ARC_COLORS, draw_grids
from arcdist.tracking.plots import BLUE, VERMILION

_CELL_INCHES = 0.11
_LEAST_INCHES = 1.9
_LETTERS_PER_INCH = 12
_PAIR = (BLUE, VERMILION)


def draw_task(given: Given, path: Path, heading: Sequence[str]) -> None:
    """Draw a row for each pair: as in the data and, on the right, as augmented; the target in a row of its own.

    Args:
        given: the query.
        path: of the PNG.
        heading: lines above all.

    Raises:
        ConfigError: the file cannot be written.
    """
    strips = [strip for strip in strips_of(given) if strip.before]
    side = max(_LEAST_INCHES, _CELL_INCHES * given.task.longest_side)
    columns = 4 if given.augmentation is not None else 2
    width = columns * (side + 0.3)
    title = [part for line in heading for part in textwrap.wrap(line, int(width * _LETTERS_PER_INCH))]
    height = len(strips) * (side + 0.7) + 0.2 * len(title)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    figure.suptitle("\n".join(title), x=0.02, ha="left", fontsize="medium")
    places: list[Axes] = []
    panels: list[Panel] = []
    titles: list[str] = []
    for strip, row in zip(strips, figure.subplots(len(strips), columns, squeeze=False), strict=True):
        for axes in row:
            axes.set_axis_off()
        # What is augmented begins in the third column, also where a pair has one grid.
        for column, panel in (*enumerate(strip.before), *enumerate(strip.after, start=2)):
            places.append(row[column])
            panels.append(panel)
            titles.append(f"{_above(strip, column)}\n{panel.caption}")
    # In one call, so that cells have one size in all rows.
    draw_grids(places, [panel.grid for panel in panels], titles)
    _save(figure, path)


def _above(strip: Strip, column: int) -> str:
    return {0: "\n".join(filter(None, (strip.name, strip.note))), 2: "augmented"}.get(column, "")


def draw_data(overview: Overview, path: Path) -> None:
    """Draw the lengths of the queries, the sides of the grids and the colours of their cells.

    Raises:
        ConfigError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 4.2), dpi=100, layout="constrained")
    lengths, sides, colors = figure.subplots(1, 3)

    counted = histogram([overview.training.lengths, overview.validation.lengths], most_bins=40)
    edges = counted.width * np.arange(len(counted.counts[0]) + 1)
    lengths.set_title("Tokens of a query, share of the queries")
    for counts, role, color in zip(counted.counts, ("training", "validation"), _PAIR, strict=True):
        number = sum(counts)
        lengths.stairs(np.array(counts) / number, edges, label=f"{role}: {number:,} queries", color=color, linewidth=2)
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
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
    except OSError as error:
        raise ConfigError(f"--picture {path} cannot be written ({error.strerror}): choose another file.") from error
