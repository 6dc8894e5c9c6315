"""The pictures of a run: how it went in four panels, and grids in ARC's own colours.

Matplotlib is used through figure objects only, which need no display and leave no global state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Integer
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from arcdist.tracking.atomic import replacing

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

# Okabe & Ito's palette (2008), told apart with every kind of colour vision; its yellow is too pale for white paper.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
TERM_COLORS = {
    "risk": BLUE,
    "ambiguity": SKY,
    "step": BLACK,
    "consistency": VERMILION,
    "bidirectional": GREEN,
    "z_learning": ORANGE,
    "prompt": PURPLE,
}
_MOST_MARKED_POINTS = 25

Records: TypeAlias = Sequence[Mapping[str, Any]]
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
        if self.prediction.shape != self.target.shape:
            return "wrong size"
        wrong = int((self.prediction != self.target).sum())
        return "solved" if wrong == 0 else f"{wrong} of {self.target.size} cells wrong"


def plot_metrics(metrics: Mapping[str, Any], steps: Records, path: Path) -> None:
    """Draw training loss, validation accuracy, perfect-grid rate and loss components as a PNG of 1200 x 800 pixels.

    `metrics` is the content of `metrics.json`, `steps` the objects of `steps.jsonl`. Losses are drawn over the logged
    steps, or over the epochs where fewer than two steps were logged. Values that are missing or null are left out.
    """
    epochs, best = metrics["epochs"], metrics["best"]
    losses, over, loss_key = (steps, "step", "loss") if len(steps) >= 2 else (epochs, "epoch", "train/loss")
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    (loss, accuracy), (exact, terms) = figure.subplots(2, 2)

    loss.set_title("Training loss")
    _draw_smoothed(loss, losses, over, loss_key)

    accuracy.set_title("Validation accuracy")
    for key, label, color in (
        ("val/cell", "cells", BLUE),
        ("val/size", "grid sizes", GREEN),
        ("val/exact", "exact grids", VERMILION),
    ):
        _draw_line(accuracy, epochs, "epoch", key, label, color)
    _draw_line(accuracy, epochs, "epoch", "floor/copy_cell", "cells, copying the input", SKY, dashed=True)
    accuracy.set_ylim(-0.02, 1.02)

    exact.set_title("Perfect-grid rate")
    _draw_line(exact, epochs, "epoch", "train/exact", "training", ORANGE)
    _draw_line(exact, epochs, "epoch", "val/exact", "validation", VERMILION)
    _draw_line(exact, epochs, "epoch", "floor/copy_exact", "validation, copying the input", BLACK, dashed=True)
    if best.get("val/exact") is not None:
        exact.plot(
            best["epoch"], best["val/exact"], "*", color=VERMILION, markersize=16, markeredgecolor="white", zorder=3,
            label=f"best epoch by {best['metric']}",
        )  # fmt: skip
    highest = max((float(np.max(line.get_ydata())) for line in exact.get_lines()), default=0.0)
    exact.set_ylim(-0.02 * max(highest, 0.01), 1.1 * max(highest, 0.01))

    terms.set_title("Loss components (unweighted EFE terms)")
    for term, color in TERM_COLORS.items():
        _draw_line(terms, losses, over, f"efe/{term}", term, color)
    terms.set_yscale("symlog", linthresh=0.01)
    terms.set_ylim(bottom=0.0)

    for axes, unit in ((loss, over), (accuracy, "epoch"), (exact, "epoch"), (terms, over)):
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_lines():
            axes.legend(fontsize="small", framealpha=0.85, ncols=2 if axes is terms else 1)
    for axes in (accuracy, exact):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
    _save(figure, path)


def draw_grids(row: Sequence[Axes], grids: Sequence[Grid], titles: Sequence[str]) -> None:
    """Draw a row of grids (colours 0 to 9) with cells of one size, each on its axes under its title."""
    height = max(grid.shape[0] for grid in grids)
    width = max(grid.shape[1] for grid in grids)
    for axes, grid, title in zip(row, grids, titles, strict=True):
        axes.pcolormesh(grid, cmap=ListedColormap(ARC_COLORS), vmin=-0.5, vmax=9.5, edgecolors="#555555", linewidth=0.6)
        axes.set(xlim=(-0.05, width + 0.05), ylim=(height + 0.05, -0.05), aspect="equal")
        axes.set_axis_off()
        axes.set_title(title, fontsize="medium")


def plot_examples(examples: Sequence[Example], path: Path) -> None:
    """Draw a PNG with a row for each of at least one example: input, prediction, target."""
    figure = Figure(figsize=(7.5, 2.7 * len(examples)), dpi=100, layout="constrained")
    rows = figure.subplots(len(examples), 3, squeeze=False)
    for row, example in zip(rows, examples, strict=True):
        draw_grids(
            list(row),
            (example.query, example.prediction, example.target),
            (f"input\n{example.name}", f"prediction\n{example.verdict}", "target\n"),
        )
    _save(figure, path)


def _series(records: Records, over: str, key: str) -> tuple[list[float], list[float]]:
    present = [(float(record[over]), float(record[key])) for record in records if record.get(key) is not None]
    return [x for x, _ in present], [y for _, y in present]


def _draw_line(
    axes: Axes, records: Records, over: str, key: str, label: str, color: str, *, dashed: bool = False
) -> None:
    x, y = _series(records, over, key)
    if not x:
        return
    if dashed and len(x) == 1:
        axes.axhline(y[0], color=color, linestyle="--", linewidth=1.6, label=label)
        return
    marker = "o" if len(x) <= _MOST_MARKED_POINTS and not dashed else ""
    axes.plot(x, y, marker=marker, markersize=5, color=color, linestyle="--" if dashed else "-", label=label)


def _draw_smoothed(axes: Axes, records: Records, over: str, key: str) -> None:
    """The values, pale where a running mean over a twentieth of them is drawn on top."""
    x, y = _series(records, over, key)
    width = len(x) // 20
    if width < 2:
        _draw_line(axes, records, over, key, "loss", BLUE)
        return
    axes.plot(x, y, color=SKY, linewidth=0.8, alpha=0.7, label="loss")
    mean = np.convolve(y, np.full(width, 1 / width), mode="valid")
    start = (width - 1) // 2
    axes.plot(x[start : start + len(mean)], mean, color=BLUE, linewidth=2, label=f"mean of {width} logged steps")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
