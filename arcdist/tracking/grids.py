"""Grids in ARC's ten colours: as text for a terminal, as small pictures, and as figures that mark what is wrong."""

import io
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from arcdist.formatting import counted
from arcdist.tracking.metrics import ShownQuery
from arcdist.tracking.plots import VERMILION

ARC_COLORS = (
    *("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00"),
    *("#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"),
)
"""The ten colours of ARC's own pages, by number."""

DIFFERENCE = (
    "In a difference right cells are white, and a wrong one has the target's colour and a cross; where the sizes are "
    "not the same, the target's frame is solid and the prediction's is dashed."
)
"""How the last panel of `query_figure` is read."""

Cells: TypeAlias = Integer[np.ndarray, "_ _"]
"""A grid, in integers of any kind."""


def verdict(prediction: Cells, target: Cells) -> str:
    """How a prediction compares with the target, in words."""
    if prediction.shape != target.shape:
        return "wrong size"
    wrong = int((prediction != target).sum())
    return "solved" if wrong == 0 else f"{wrong} of {counted(target.size, 'cell')} wrong"


def verdict_of(query: ShownQuery) -> str:
    """How the scored answer of a query compares with its target, in words."""
    return verdict(np.array(query.prediction), np.array(query.target))


def right_cells(prediction: Cells, target: Cells) -> int:
    """How many cells of the target are right; one that the prediction does not have is wrong."""
    height, width = np.minimum(prediction.shape, target.shape)
    return int((prediction[:height, :width] == target[:height, :width]).sum())


def on_one_canvas(prediction: Cells, target: Cells) -> Integer[np.ndarray, "2 _ _"]:
    """Both grids on a canvas that holds either, one above the other; -1 where a grid has no cell."""
    layers = np.full((2, *np.maximum(prediction.shape, target.shape)), -1)
    for layer, grid in zip(layers, (prediction, target), strict=True):
        layer[: grid.shape[0], : grid.shape[1]] = grid
    return layers


# Text for a terminal.

_FAINT = "#777777"  # Frames, and the digit of the background colour: visible to those who look for them.


def has_colors(console: Console) -> bool:
    """Whether ARC's ten colours can be told apart there: sixteen colours, or none, are too few."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def grid_text(grid: Cells, *, wide: bool, colored: bool) -> Text:
    """A grid as text, a line a row; if its cells are coloured and not wide, framed and with a line for two rows."""
    if not colored:
        return Text("\n".join((" " if wide else "").join(map(str, row)) for row in grid.tolist()))
    if wide:
        return Text("\n").join(Text.assemble(*((f"{color} ", _CELLS[color]) for color in row)) for row in grid.tolist())
    edge = "─" * grid.shape[1]
    lines = [Text(f"┌{edge}┐", style=_FAINT)]
    for top in range(0, len(grid), 2):
        cells = (("▀", _two_cells(*column)) for column in grid[top : top + 2].T.tolist())
        lines.append(Text.assemble(("│", _FAINT), *cells, ("│", _FAINT)))
    return Text("\n").join([*lines, Text(f"└{edge}┘", style=_FAINT)])


def _two_cells(upper: int, lower: int | None = None) -> Style:
    return Style(color=ARC_COLORS[upper], bgcolor=None if lower is None else ARC_COLORS[lower])


def _ink(number: int) -> str:
    if number == 0:
        return _FAINT
    red, green, blue = Color.parse(ARC_COLORS[number]).get_truecolor()
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#FFFFFF"


_CELLS = tuple(Style(color=_ink(number), bgcolor=color) for number, color in enumerate(ARC_COLORS))

CELL_PIXELS = 8
"""Pixels of a cell's side, with the line beside it."""
_BETWEEN = 12
"""Pixels between the grids."""
_LINE, _RIGHT, _WRONG, _PAPER = 10, 11, 12, 13
_DIAGONAL = np.pad(np.eye(CELL_PIXELS - 3, dtype=bool), 1)
_CROSS = _DIAGONAL | _DIAGONAL[::-1]
"""Which pixels of a cell are its cross, and beside that its edge: white and black show on any colour."""
_CROSS_EDGE = np.roll(_CROSS, 1, axis=1) | np.roll(_CROSS, -1, axis=1)
_PALETTE = bytes.fromhex("".join((*ARC_COLORS, "#555555", "#EEEEEE", VERMILION, "#FFFFFF")).replace("#", ""))


def query_picture(query: ShownQuery) -> Image.Image:
    """A query in a row: input, the answer after each planning step, scored answer, target, difference.

    Quickly drawn and small as a file, for W&B and TensorBoard. In the difference right cells are pale and wrong ones
    vermilion, also those that only one of the two grids has.
    """
    grids = [np.array(grid, dtype=np.uint8) for grid in (query.input, *query.steps, query.prediction, query.target)]
    drawn = [_with_lines(grid) for grid in (*grids, _right_and_wrong(*grids[-2:]))]
    height = max(map(len, drawn))
    padded = [np.pad(grid, ((0, height - len(grid)), (0, _BETWEEN)), constant_values=_PAPER) for grid in drawn]
    return _picture(np.concatenate(padded, axis=1)[:, :-_BETWEEN])


def grid_picture(grid: Cells, target: Cells | None = None) -> Image.Image:
    """A grid by itself; cells that differ from a target, if one is given, are crossed."""
    pixels = _with_lines(grid.astype(np.uint8))
    if target is not None:
        differs = np.diff(on_one_canvas(grid, target), axis=0)[0] != 0
        for top, left in np.argwhere(differs[: grid.shape[0], : grid.shape[1]]) * CELL_PIXELS:
            cell = pixels[top + 1 : top + CELL_PIXELS, left + 1 : left + CELL_PIXELS]
            cell[_CROSS_EDGE] = 0
            cell[_CROSS] = _PAPER
    return _picture(pixels)


def difference_picture(prediction: Cells, target: Cells) -> Image.Image:
    """The difference of two grids as `query_picture` shows it."""
    return _picture(_with_lines(_right_and_wrong(prediction, target)))


def _right_and_wrong(prediction: Cells, target: Cells) -> UInt8[np.ndarray, "rows columns"]:
    layers = on_one_canvas(prediction, target)
    difference = np.where(layers[0] == layers[1], np.uint8(_RIGHT), np.uint8(_WRONG))
    difference[(layers < 0).all(axis=0)] = _PAPER  # a cell of neither grid
    return difference


def _picture(pixels: UInt8[np.ndarray, "height width"]) -> Image.Image:
    # With a palette the file is a third of the size, and made in a third of the time.
    picture = Image.frombytes("P", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    picture.putpalette(_PALETTE)
    return picture


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="png")
    return content.getvalue()


def _with_lines(grid: UInt8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "height width"]:
    pixels = np.full((grid.shape[0] * CELL_PIXELS + 1, grid.shape[1] * CELL_PIXELS + 1), _LINE, dtype=np.uint8)
    pixels[1:, 1:] = grid.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)
    pixels[::CELL_PIXELS] = pixels[:, ::CELL_PIXELS] = _LINE
    return pixels


_COLORS = ListedColormap((*ARC_COLORS, "#FFFFFF"))
_WHITE = 10
_MOST_STEPS = 5
_DPI = 100
# In pixels of the page.
_WIDTH, _TOP, _GAP, _TITLES, _MOST_CELL = 1150.0, 2.0, 14.0, 36.0, 26.0


def draw_grids(row: Sequence[Axes], grids: Sequence[Cells], titles: Sequence[str]) -> None:
    """Draw grids (colours 0 to 9) with cells of one size, each on its axes under its title."""
    height, width = np.max([grid.shape for grid in grids], axis=0)
    for axes, grid, title in zip(row, grids, titles, strict=True):
        _draw_cells(axes, grid, 0.0, 0.0, 1.0)
        axes.set(xlim=(-0.05, width + 0.05), ylim=(height + 0.05, -0.05), aspect="equal")
        axes.set_axis_off()
        axes.set_title(title, fontsize="medium")


def query_figure(query: ShownQuery) -> Figure:
    """A row of grids: input, the answer after each planning step, prediction, target, difference.

    Of more than five planning steps five are shown, the first and the last among them.
    """
    target, prediction = np.array(query.target), np.array(query.prediction)
    last = len(query.steps)
    steps = sorted({round(step) for step in np.linspace(1, last, min(last, _MOST_STEPS)).tolist()})
    panels = [
        ("input", _size(np.array(query.input)), np.array(query.input)),
        *((f"after step {step}", *_compared(np.array(query.steps[step - 1]), target)) for step in steps),
        ("prediction", *_compared(prediction, target)),
        ("target", _size(target), target),
        ("difference", _compared(prediction, target)[0], _difference(prediction, target)),
    ]
    box = (_WIDTH - (len(panels) - 1) * _GAP) // len(panels)
    cell = min(_MOST_CELL, (box - 2) / max(max(grid.shape) for _, _, grid in panels))
    height = _TOP + _TITLES + cell * max(grid.shape[0] for _, _, grid in panels) + 4
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI)
    # One pair of axes in pixels: one for each grid takes seconds to draw.
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, _WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    for index, (title, remark, grid) in enumerate(panels):
        left = index * (box + _GAP) + 1.0
        axes.text(left, _TOP + 1, title, fontsize=9, fontweight="bold", va="top")
        axes.text(left, _TOP + 17, remark, fontsize=8.5, va="top", color="#444444")
        _draw_cells(axes, grid, left, _TOP + _TITLES, cell)
    _mark(axes, prediction, target, left, _TOP + _TITLES, cell)
    return figure


def _size(grid: Cells) -> str:
    return f"{grid.shape[0]} × {grid.shape[1]}"


def _compared(answer: Cells, target: Cells) -> tuple[str, Cells]:
    if answer.shape != target.shape:
        return f"{_size(answer)}: wrong size", answer
    return verdict(answer, target).replace(" cells wrong", " wrong"), answer


def _difference(prediction: Cells, target: Cells) -> Cells:
    """The target where it is wrong, white elsewhere, on a canvas that holds both."""
    predicted, wanted = on_one_canvas(prediction, target)
    return np.where((predicted != wanted) & (wanted >= 0), wanted, _WHITE)


def _draw_cells(axes: Axes, grid: Cells, left: float, top: float, cell: float) -> None:
    height, width = grid.shape
    axes.pcolormesh(
        left + cell * np.arange(width + 1), top + cell * np.arange(height + 1), grid,
        cmap=_COLORS, vmin=-0.5, vmax=10.5, edgecolors="#777777", linewidth=0.5,
    )  # fmt: skip


def _mark(axes: Axes, prediction: Cells, target: Cells, left: float, top: float, cell: float) -> None:
    """Cross out the wrong cells and frame sizes that are not the same, so that it needs no colour vision."""
    low, high = 0.18 * cell, 0.82 * cell
    predicted, wanted = on_one_canvas(prediction, target)
    crosses = []
    for row, column in np.argwhere(predicted != wanted):
        x, y = left + column * cell, top + row * cell
        crosses += [[(x + low, y + low), (x + high, y + high)], [(x + low, y + high), (x + high, y + low)]]
    for color, thickness in (("white", 0.13), ("black", 0.06)):
        points = max(0.6, thickness * cell * 72 / _DPI)
        axes.add_collection(LineCollection(crosses, colors=color, linewidths=points), autolim=False)
    if prediction.shape != target.shape:
        for grid, style in ((target, "-"), (prediction, (0, (3, 2)))):
            height, width = cell * np.array(grid.shape)
            axes.add_patch(Rectangle((left, top), width, height, fill=False, linewidth=1.8, linestyle=style))
