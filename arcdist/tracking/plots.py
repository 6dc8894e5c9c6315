"""A run in panels of curves: four of them as one picture, or any of the eight alone.

Matplotlib is used through figure objects only, which need no display and leave no global state.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from arcdist.config.schema import EFE_TERMS
from arcdist.files import replacing

# Okabe & Ito's palette (2008), distinguishable with every kind of colour vision, without its pale yellow.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
MOST_MARKED_POINTS = 25
"""A curve of more points has no marker for each."""

Records: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """The numbers that curves are drawn from; those that are missing or null are left out."""

    epochs: Records
    """The records of `metrics.json`."""
    best: Mapping[str, Any]
    """The best of them, and `metric`, its measure; may be empty."""
    steps: Records
    """The objects of `steps.jsonl`."""


Panel: TypeAlias = Callable[[Axes, Curves], None]
"""Draws title, curves and legend on its axes."""


def plot_metrics(run: Curves, path: Path) -> None:
    """Draw training loss, validation accuracy, exact grids and loss components as a PNG of 1200 x 800 pixels.

    Losses are drawn over the logged steps, or over the epochs if there are fewer than two.
    """
    figure = Figure(figsize=(12, 8), dpi=100)
    panels = (draw_loss, draw_accuracy, draw_exact, draw_terms)
    for axes, panel in zip(figure.subplots(2, 2).flat, panels, strict=True):
        panel(axes, run)
    # A layout engine would draw everything twice for the same margins.
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.06, top=0.91, wspace=0.14, hspace=0.43)
    with replacing(path) as partial:
        # Training waits for it: weak compression saves a tenth of the time.
        figure.savefig(partial, format="png", pil_kwargs={"compress_level": 1})


def panel_figure(panel: Panel, run: Curves) -> Figure:
    """One panel as a figure of 6 x 4 inches."""
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    panel(figure.subplots(), run)
    return figure


def draw_loss(axes: Axes, run: Curves) -> None:
    """The combined loss, with its running mean."""
    records, over, loss, _ = _losses(run)
    _draw_noisy(axes, records, over, loss, "loss", BLUE, pale=SKY)
    _finish(axes, "Training loss", over)


def draw_accuracy(axes: Axes, run: Curves) -> None:
    """Right cells, sizes and grids of each validation, and the right cells of copying the input."""
    for key, label, color in (
        ("val/cell", "cells", BLUE),
        ("val/size", "grid sizes", GREEN),
        ("val/exact", "exact grids", VERMILION),
    ):
        _draw_line(axes, run.epochs, "epoch", key, label, color)
    _draw_line(axes, run.epochs, "epoch", "floor/copy_cell", "cells, copying the input", SKY, dashed=True)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    _finish(axes, "Validation accuracy", "epoch")


def draw_exact(axes: Axes, run: Curves) -> None:
    """Exact grids in training and validation, the best epoch, and what copying the input solves."""
    epochs, best = run.epochs, run.best
    _draw_line(axes, epochs, "epoch", "train/exact", "training", ORANGE)
    _draw_line(axes, epochs, "epoch", "val/exact", "validation", VERMILION)
    _draw_line(axes, epochs, "epoch", "floor/copy_exact", "validation, copying the input", BLACK, dashed=True)
    if best.get("val/exact") is not None:
        axes.plot(
            best["epoch"], best["val/exact"], "*", color=VERMILION, markersize=16, markeredgecolor="white", zorder=3,
            label=f"best epoch by {best['metric']}",
        )  # fmt: skip
    highest = max((float(np.max(line.get_ydata())) for line in axes.get_lines()), default=0.0)
    axes.set_ylim(-0.02 * max(highest, 0.01), 1.1 * max(highest, 0.01))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
    _finish(axes, "Exact grids", "epoch")


def draw_terms(axes: Axes, run: Curves) -> None:
    """The terms of the EFE loss, as running means."""
    records, over, _, window = _losses(run)
    for term, key in EFE_TERMS.items():
        _draw_noisy(axes, records, over, f"efe/{term}", term, key.metadata["color"])
    axes.set_yscale("symlog", linthresh=0.01)
    # Plain numbers: powers of ten would be set as mathematics, a fifth of the drawing's time.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom=0.0)
    _finish(axes, "Loss components (unweighted EFE terms)", f"{over}{window}", columns=4)


def draw_reward(axes: Axes, run: Curves) -> None:
    """The mean reward of the refinements, and 0, which is no gain."""
    _draw_noisy(axes, run.steps, "step", "reward/mean", "mean reward", PURPLE, pale=PURPLE)
    if axes.get_lines():
        axes.axhline(0.0, color=BLACK, linestyle="--", linewidth=1.2, label="no gain")
    _finish(axes, "Reward of the refiner", "step", columns=3)


def draw_gradient(axes: Axes, run: Curves) -> None:
    """Qwen's gradient norm before clipping."""
    _draw_noisy(axes, run.steps, "step", "grad_norm/qwen", "norm before clipping", GREEN, pale=GREEN)
    if any((np.asarray(line.get_ydata()) > 0).any() for line in axes.get_lines()):
        axes.set_yscale("log", nonpositive="mask")
    _finish(axes, "Qwen's gradient", "step")


def draw_pace(axes: Axes, run: Curves) -> None:
    """Training queries a second, without validation and saving."""
    _draw_noisy(axes, run.steps, "step", "pairs_per_s", "queries a second", ORANGE, pale=ORANGE)
    axes.set_ylim(bottom=0.0)
    _finish(axes, "Pace", "step")


def draw_learning_rates(axes: Axes, run: Curves) -> None:
    """The learning rates; equal ones share a line."""
    names = sorted({name for step in run.steps for name in step if name.startswith("lr/")})
    lines: dict[tuple[tuple[float, ...], ...], list[str]] = {}
    for name in names:
        x, y = map(tuple, series(run.steps, "step", name))
        if any(y):
            lines.setdefault((x, y), []).append(name.removeprefix("lr/"))
    colors = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, BLACK, SKY)
    for index, ((x, y), sharing) in enumerate(lines.items()):
        axes.plot(x, y, color=colors[index % 7], linestyle="-" if index < 7 else ":", label=", ".join(sharing))
    if lines:
        axes.set_yscale("log", nonpositive="mask")
        # At the end of a cosine a rate is next to nothing.
        lowest, highest = (pick(rate for _, y in lines for rate in y if rate > 0) for pick in (min, max))
        axes.set_ylim(bottom=max(lowest / 2, 1e-4 * highest))
    _finish(axes, "Learning rates", "step", columns=3)


def series(records: Records, over: str, key: str) -> tuple[list[float], list[float]]:
    """The numbers `over` and `key` of the records that have `key`."""
    present = [(float(record[over]), float(record[key])) for record in records if record.get(key) is not None]
    return [x for x, _ in present], [y for _, y in present]


def running_mean(x: Sequence[float], y: Sequence[float], width: int) -> tuple[list[float], list[float]]:
    """The means over `width` points, at least one, each at the middle of its points; empty for fewer points."""
    if len(y) < width:
        return [], []
    mean = np.convolve(y, np.full(width, 1 / width), mode="valid")
    start = (width - 1) // 2
    return list(x[start : start + len(mean)]), mean.tolist()


def bare_axes(axes: Axes) -> None:
    """A pale grid below the curves, no more than six whole numbers on the x axis, no frame above and on the right."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _losses(run: Curves) -> tuple[Records, str, str, str]:
    """Records with losses, their x axis, the key of the combined loss, and a note on the running mean."""
    if len(run.steps) < 2:
        return run.epochs, "epoch", "train/loss", ""
    width = len(series(run.steps, "step", "loss")[0]) // 20
    return run.steps, "step", "loss", f" (running means of {width} logged steps)" if width >= 2 else ""


def _finish(axes: Axes, title: str, unit: str, *, columns: int = 2) -> None:
    """Title, legend and axes; the legend is above the panel, where it hides no curve."""
    axes.set_xlabel(unit)
    bare_axes(axes)
    rows = -(-len(axes.get_lines()) // columns)
    # A row of the legend is 16 points high.
    axes.set_title(title, loc="left", y=1.0, pad=6 + 16 * max(1, rows), fontweight="bold", fontsize=12)
    if rows:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, ncols=columns, frameon=False,
            fontsize="medium", handlelength=1.6, columnspacing=1.4, labelspacing=0.3,
        )  # fmt: skip
    else:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", va="center", color="#555555")


def _draw_line(
    axes: Axes, records: Records, over: str, key: str, label: str, color: str, *, dashed: bool = False
) -> None:
    x, y = series(records, over, key)
    if not x:
        return
    if dashed and len(x) == 1:
        axes.axhline(y[0], color=color, linestyle="--", linewidth=1.6, label=label)
        return
    marker = "o" if len(x) <= MOST_MARKED_POINTS and not dashed else ""
    axes.plot(x, y, marker=marker, markersize=5, color=color, linestyle="--" if dashed else "-", label=label)


def _draw_noisy(
    axes: Axes, records: Records, over: str, key: str, label: str, color: str, *, pale: str | None = None
) -> None:
    """The running mean over a twentieth of the values, if that is at least two; beneath it, in `pale`, the values."""
    x, y = series(records, over, key)
    width = len(x) // 20
    if width < 2:
        _draw_line(axes, records, over, key, label, color)
        return
    if pale is not None:
        axes.plot(x, y, color=pale, linewidth=0.8, alpha=0.6, label=label)
        label = f"running mean of {width} logged steps"
    axes.plot(*running_mean(x, y, width), color=color, linewidth=2, label=label)
