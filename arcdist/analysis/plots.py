"""Several runs in one picture: their curves on common axes, and the shares of their EFE terms."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from arcdist.analysis.record import RunRecord
from arcdist.analysis.scores import Run, last_shares
from arcdist.config.schema import EFE_TERMS
from arcdist.tracking.plots import (
    BLACK,
    BLUE,
    GREEN,
    MOST_MARKED_POINTS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    bare_axes,
    running_mean,
    series,
)

Dash: TypeAlias = Literal["-", "--", "-.", ":"]

_EXACT = "val/exact"
CURVES = {
    "loss": "Training loss",
    _EXACT: "Exact grids in validation",
    "reward/mean": "Mean reward",
    "grad_norm/qwen": "Gradient norm of Qwen",
    "pairs_per_s": "Queries a second",
}
"""The title of each number that is drawn as a curve for each run."""

_FROM_ZERO = (_EXACT, "grad_norm/qwen", "pairs_per_s")
_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_DASHES: tuple[Dash, ...] = ("-", "--", "-.", ":")
# Inches of a panel as a separate figure: no wider than a phone shows at full size.
_WIDTH, _HEIGHT, _LEGEND_ROW = 3.8, 3.0, 0.22


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Loss, exact grids, reward, Qwen's gradient norm and pace over the steps, with the legend in the sixth place."""
    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    *panels, legend = figure.subplots(2, 3).flat
    for axes, key in zip(panels, CURVES, strict=True):
        _draw_curve(axes, runs, key)
    legend.set_axis_off()
    legend.legend(_lines(runs), [_label(run) for run in runs], loc="upper left", frameon=False, borderaxespad=0.0)
    return figure


def draw_efe_terms(runs: Sequence[Run]) -> Figure:
    """A bar for each run: the share of each weighted term in the energy of its last epoch."""
    figure = Figure(figsize=(12, 1.6 + 0.55 * len(runs)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_title("EFE terms in the last epoch: share of λ · term", loc="left")
    _draw_shares(axes, runs, [_label(run) for run in runs], least=0.05)
    figure.legend(_squares(), list(EFE_TERMS), loc="outside lower center", ncols=len(EFE_TERMS), frameon=False)
    return figure


def draw_panels(runs: Sequence[Run]) -> Mapping[str, Figure]:
    """Each panel as a separate figure, by what it shows in words; runs are called by their letters."""
    letters = [run.letter for run in runs]
    figures = {}
    for key, title in CURVES.items():
        figure = _panel(_HEIGHT, _lines(runs), letters, min(len(runs), 6), handlelength=1.6, columnspacing=1.4)
        _draw_curve(figure.subplots(), runs, key)
        figures[f"{title}, a line a run"] = figure
    # With its legend of three rows as high as the others, or as its bars need.
    height = max(_HEIGHT - 2 * _LEGEND_ROW, 0.8 + 0.26 * len(runs))
    spacing = {"handlelength": 1.0, "handletextpad": 0.4, "columnspacing": 1.0}
    figure = _panel(height, _squares(), list(EFE_TERMS), 3, **spacing)
    axes = figure.subplots()
    axes.set_title("EFE terms: share of λ · term")
    _draw_shares(axes, runs, letters, least=0.1)
    return {**figures, "Share of each EFE term in each run's last epoch": figure}


def style_of(runs: Sequence[Run], run: Run) -> tuple[str, Dash]:
    """Colour and dash of a run's line: seven colours, then the same ones dashed."""
    times, place = divmod(runs.index(run), len(_COLORS))
    return _COLORS[place], _DASHES[times]


def _draw_curve(axes: Axes, runs: Sequence[Run], key: str) -> None:
    """One of `CURVES` over the steps; over the training queries if the runs have different batch sizes.

    Pale lines are logged values, strong ones a running mean over a tenth of them.
    """
    sizes = {run.record.config.get("train.batch_size") for run in runs}
    by_query = len(sizes) > 1 and None not in sizes
    for run in runs:
        color, dash = style_of(runs, run)
        x, y = _validated(run.record) if key == _EXACT else series(run.record.steps, "step", key)
        if by_query:
            x = [run.record.config["train.batch_size"] * step for step in x]
        if key == _EXACT:
            marker = "o" if len(x) <= MOST_MARKED_POINTS else ""
            axes.plot(x, y, marker=marker, markersize=4, color=color, linestyle=dash)
            continue
        mean_x, mean = running_mean(x, y, len(y) // 10 | 1)
        if len(mean) < len(y):
            axes.plot(x, y, color=color, linewidth=0.7, alpha=0.3)
        marker = "o" if len(mean) == 1 else ""
        axes.plot(mean_x, mean, color=color, linestyle=dash, linewidth=1.8, marker=marker)
    axes.set_title(CURVES[key])
    axes.set_xlabel("training queries" if by_query else "step")
    bare_axes(axes)
    if key == _EXACT:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
    if not any(np.size(line.get_xdata()) for line in axes.get_lines()):
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="#555555")
    if key in _FROM_ZERO:
        axes.set_ylim(bottom=0.0)


def _validated(record: RunRecord) -> tuple[list[float], list[float]]:
    """The step after which each epoch ended, and its exact grids; epochs whose step is not known are left out."""
    ends = {step["epoch"]: step["step"] for step in record.steps if step.get("epoch") is not None}
    ends |= {validation.epoch: validation.step for validation in record.validations}
    epochs = [{**epoch, "end": ends[epoch["epoch"]]} for epoch in record.epochs if epoch["epoch"] in ends]
    return series(epochs, "end", _EXACT)


def _draw_shares(axes: Axes, runs: Sequence[Run], labels: Sequence[str], *, least: float) -> None:
    """A bar for each run under its label; shares below `least` have no room for their number."""
    for place, run in enumerate(runs):
        left = 0.0
        for term, share in (last_shares(run.record) or {}).items():
            color = EFE_TERMS[term].metadata["color"]
            axes.barh(place, share, left=left, color=color, edgecolor="white", linewidth=1.0)
            if share >= least:
                luminance = np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722))
                text = "white" if luminance < 0.45 else "black"
                axes.text(left + share / 2, place, f"{share:.0%}", color=text, ha="center", va="center")
            left += share
        if left == 0.0:
            axes.text(0.01, place, "not logged", color="#555555", va="center")
    axes.set_yticks(range(len(runs)), labels)
    axes.set(xlim=(0.0, 1.0), ylim=(len(runs) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _panel(height: float, handles: list[Line2D], labels: list[str], columns: int, **spacing: float) -> Figure:
    """An empty figure with a legend of so many columns below `height` inches for a panel."""
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(_WIDTH, height + _LEGEND_ROW * rows), dpi=100, layout="constrained")
    options: dict[str, Any] = {"ncols": columns, "frameon": False, "borderaxespad": 0.2, **spacing}
    figure.legend(handles, labels, loc="outside lower center", **options)
    return figure


def _lines(runs: Sequence[Run]) -> list[Line2D]:
    styles = (style_of(runs, run) for run in runs)
    return [Line2D([], [], color=color, linestyle=dash, linewidth=2.5) for color, dash in styles]


def _squares() -> list[Line2D]:
    colors = (key.metadata["color"] for key in EFE_TERMS.values())
    return [Line2D([], [], color=color, marker="s", linestyle="", markersize=9) for color in colors]


def _label(run: Run) -> str:
    name = run.name if len(run.name) <= 31 else f"{run.name[:15]}…{run.name[-15:]}"
    return f"{run.letter}  {name}".replace("$", r"\$")
