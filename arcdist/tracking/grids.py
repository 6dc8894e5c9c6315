"""Grids in ARC's own colours, beside each other and with what is wrong in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Integer
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from arcdist.files import replacing
from arcdist.tracking.metrics import Rows, ShownQuery

ARC_COLORS = (
    "#000000",
    "#0074D9",
    "#FF4136",
    "#2ECC40",
    "#FFDC00",
    "#AAAAAA",
    "#F012BE",
    "#FF851B",
    "#7FDBFF",
    "#870C25",
)
"""The ten colours of ARC's own pages, by number."""

DIFFERENCE = (
    "In a difference right cells are white, and a wrong one has the target's colour and a cross; where the sizes are "
    "not the same, the target's frame is solid and the prediction's is dashed."
)
"""How `difference` is to be read."""

_COLORS = ListedColormap((*ARC_COLORS, "#FFFFFF"))
_WHITE = 10
_EDGE = "#777777"
_MOST_STEPS = 5
_DPI = 100
# In pixels of the page.
_WIDTH, _TOP, _GAP, _TITLES, _NAME, _MOST_CELL = 1150.0, 2.0, 14.0, 36.0, 24.0, 26.0

Grid: TypeAlias = Integer[np.ndarray, "_ _"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A scored query: grids of colours 0 to 9."""

    name: str
    query: Grid
    prediction: Grid
    target: Grid

    @property
    def verdict(self) -> str:
        """How the prediction compares with the target, in words."""
        return verdict(self.prediction, self.target)


def verdict(prediction: Grid, target: Grid) -> str:
    """How a prediction compares with the target, in words."""
    if prediction.shape != target.shape:
        return "wrong size"
    wrong = int((prediction != target).sum())
    return "solved" if wrong == 0 else f"{wrong} of {target.size} cells wrong"


def verdict_of(query: ShownQuery) -> str:
    """How the scored answer of a query compares with its target, in words."""
    return verdict(_array(query.prediction), _array(query.target))


def right_cells(prediction: Grid, target: Grid) -> int:
    """How many cells of the target are right; one that the prediction does not have is wrong."""
    height, width = np.minimum(prediction.shape, target.shape)
    return int((prediction[:height, :width] == target[:height, :width]).sum())


def on_one_canvas(prediction: Grid, target: Grid) -> Integer[np.ndarray, "2 _ _"]:
    """Both grids on a canvas that holds either, one above the other; -1 where a grid has no cell."""
    layers = np.full((2, *np.maximum(prediction.shape, target.shape)), -1)
    for layer, grid in zip(layers, (prediction, target), strict=True):
        layer[: grid.shape[0], : grid.shape[1]] = grid
    return layers


def draw_grids(row: Sequence[Axes], grids: Sequence[Grid], titles: Sequence[str]) -> None:
    """Draw a row of grids (colours 0 to 9) with cells of one size, each on its axes under its title."""
    height = max(grid.shape[0] for grid in grids)
    width = max(grid.shape[1] for grid in grids)
    for axes, grid, title in zip(row, grids, titles, strict=True):
        _draw_cells(axes, grid, 0.0, 0.0, 1.0)
        axes.set(xlim=(-0.05, width + 0.05), ylim=(height + 0.05, -0.05), aspect="equal")
        axes.set_axis_off()
        axes.set_title(title, fontsize="medium")


def plot_examples(examples: Sequence[Example], path: Path) -> None:
    """Draw a PNG with a row for each of at least one example: input, prediction, target."""
    figure = Figure(figsize=(7.5, 2.7 * len(examples)), dpi=_DPI, layout="constrained")
    rows = figure.subplots(len(examples), 3, squeeze=False)
    for row, example in zip(rows, examples, strict=True):
        draw_grids(
            list(row),
            (example.query, example.prediction, example.target),
            (f"input\n{example.name}", f"prediction\n{example.verdict}", "target\n"),
        )
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def query_figure(query: ShownQuery) -> Figure:
    """A row of grids: input, the answer after each planning step, prediction, target, difference.

    Of more than five planning steps five are shown, the first and the last among them.
    """
    return _rows_figure([query], named=False)


def queries_figure(queries: Sequence[ShownQuery]) -> Figure:
    """Such a row for each of at least one query, under its id: the picture of a `Validation`'s shown queries."""
    return _rows_figure(queries, named=True)


def _rows_figure(queries: Sequence[ShownQuery], *, named: bool) -> Figure:
    rows = [_panels(query) for query in queries]
    most = max(len(panels) for panels in rows)
    box = (_WIDTH - (most - 1) * _GAP) // most
    name = _NAME if named else 0.0
    cells = [min(_MOST_CELL, (box - 2) / max(max(grid.shape) for _, _, grid in panels)) for panels in rows]
    heights = [
        name + _TITLES + cell * max(grid.shape[0] for _, _, grid in panels) + 4
        for panels, cell in zip(rows, cells, strict=True)
    ]
    height = _TOP + sum(heights) + (len(rows) - 1) * _GAP
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI)
    # One pair of axes in pixels: a hundred of them take seconds to draw.
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, _WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    top = _TOP
    for query, panels, cell, row_height in zip(queries, rows, cells, heights, strict=True):
        if named:
            axes.text(1, top + 3, query.id, fontsize=11, fontweight="bold", va="top", parse_math=False)
        for index, (title, remark, grid) in enumerate(panels):
            left, upper = index * (box + _GAP) + 1.0, top + name
            axes.text(left, upper + 1, title, fontsize=9, fontweight="bold", va="top")
            axes.text(left, upper + 17, remark, fontsize=8.5, va="top", color="#444444")
            _draw_cells(axes, grid, left, upper + _TITLES, cell)
        _mark(axes, _array(query.prediction), _array(query.target), left, upper + _TITLES, cell)
        top += row_height + _GAP
    return figure


def _panels(query: ShownQuery) -> list[tuple[str, str, Grid]]:
    """Title, remark and grid of each panel; the last one is the difference."""
    target, prediction = _array(query.target), _array(query.prediction)
    last = len(query.steps)
    numbers = sorted({round(number) for number in np.linspace(1, last, min(last, _MOST_STEPS)).tolist()})
    answers = [(f"after step {number}", _array(query.steps[number - 1])) for number in numbers]
    return [
        ("input", _size(_array(query.input)), _array(query.input)),
        *((title, _wrong(answer, target), answer) for title, answer in answers),
        ("prediction", _wrong(prediction, target), prediction),
        ("target", _size(target), target),
        ("difference", _wrong(prediction, target), _difference(prediction, target)),
    ]


def _array(rows: Rows) -> Grid:
    return np.array(rows, dtype=np.int64)


def _size(grid: Grid) -> str:
    return f"{grid.shape[0]} × {grid.shape[1]}"


def _wrong(answer: Grid, target: Grid) -> str:
    if answer.shape != target.shape:
        return f"{_size(answer)}: wrong size"
    wrong = int((answer != target).sum())
    return f"{wrong} of {target.size} wrong" if wrong else "solved"


def _difference(prediction: Grid, target: Grid) -> Grid:
    """The target where it is wrong, white elsewhere, on a canvas that holds both."""
    canvas = np.full(np.maximum(prediction.shape, target.shape), _WHITE)
    height, width = target.shape
    wrong = _wrong_cells(prediction, target)[:height, :width]
    canvas[:height, :width][wrong] = target[wrong]
    return canvas


def _wrong_cells(prediction: Grid, target: Grid) -> np.ndarray:
    """Where only one of the two has a cell, or they have not the same colour."""
    upper, lower = on_one_canvas(prediction, target)
    return upper != lower


def _draw_cells(axes: Axes, grid: Grid, left: float, top: float, cell: float) -> None:
    height, width = grid.shape
    axes.pcolormesh(
        left + cell * np.arange(width + 1), top + cell * np.arange(height + 1), grid,
        cmap=_COLORS, vmin=-0.5, vmax=10.5, edgecolors=_EDGE, linewidth=0.5,
    )  # fmt: skip


def _mark(axes: Axes, prediction: Grid, target: Grid, left: float, top: float, cell: float) -> None:
    """Cross out the wrong cells and frame sizes that are not the same, so that it needs no colour vision."""
    inset = 0.18 * cell
    crosses = []
    for row, column in np.argwhere(_wrong_cells(prediction, target)):
        x, y = left + column * cell, top + row * cell
        low, high = inset, cell - inset
        crosses += [[(x + low, y + low), (x + high, y + high)], [(x + low, y + high), (x + high, y + low)]]
    for color, thickness in (("white", 0.13), ("black", 0.06)):
        points = max(0.6, thickness * cell * 72 / _DPI)
        axes.add_collection(LineCollection(crosses, colors=color, linewidths=points), autolim=False)
    if prediction.shape != target.shape:
        for grid, style in ((target, "-"), (prediction, (0, (3, 2)))):
            height, width = cell * np.array(grid.shape)
            axes.add_patch(Rectangle((left, top), width, height, fill=False, linewidth=1.8, linestyle=style))
