"""The pictures of a comparison: how the runs went on common axes, and what their energy is made of."""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from arcdist.comparison.efe_shares import LAMBDAS, last_shares
from arcdist.comparison.logged import number
from arcdist.comparison.runs import Run
from arcdist.tracking.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, TERM_COLORS, VERMILION
from arcdist.tracking.run_record import RunRecord

Dash: TypeAlias = Literal["-", "--", "-.", ":"]
Series: TypeAlias = tuple[list[float], list[float]]

_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_DASHES: tuple[Dash, ...] = ("-", "--", "-.", ":")
_MOST_MARKED_POINTS = 25
_LEAST_SHARE_WITH_A_NUMBER = 0.05
_DARK = 0.45
"""Luminance below which white is easier to read than black."""
_LONGEST_NAME = 31


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Loss, exact grids, reward, Qwen's gradient norm and pace over the steps, with the legend in the sixth place.

    Runs with other batch sizes are drawn over the training queries. Pale lines are logged values, strong ones a running
    mean over a tenth of them.
    """
    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    ((loss, exact, reward), (norm, pace, legend)) = figure.subplots(2, 3)
    sizes = {run.record.config.get("train.batch_size") for run in runs}
    by_query = len(sizes) > 1 and None not in sizes
    for axes, title, key in (
        (loss, "Training loss", "loss"),
        (reward, "Mean reward", "reward/mean"),
        (norm, "Gradient norm of Qwen", "grad_norm/qwen"),
        (pace, "Queries a second", "pairs_per_s"),
    ):
        axes.set_title(title)
        for run in runs:
            _draw_smoothed(axes, _over(run.record, _logged(run.record, key), by_query), *style_of(runs, run))
    exact.set_title("Exact grids in validation")
    for run in runs:
        color, dash = style_of(runs, run)
        x, y = _over(run.record, _validated(run.record), by_query)
        marker = "o" if len(x) <= _MOST_MARKED_POINTS else ""
        exact.plot(x, y, marker=marker, markersize=4, color=color, linestyle=dash)
    exact.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
    for axes in (loss, exact, reward, norm, pace):
        axes.set_xlabel("training queries" if by_query else "step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if not any(len(line.get_xdata()) for line in axes.get_lines()):
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="#555555")
    for axes in (exact, norm, pace):
        axes.set_ylim(bottom=0.0)
    handles = [
        Line2D([], [], color=color, linestyle=dash, linewidth=2.5)
        for color, dash in (style_of(runs, run) for run in runs)
    ]
    legend.set_axis_off()
    legend.legend(handles, [_label(run) for run in runs], loc="upper left", frameon=False, borderaxespad=0.0)
    return figure


def draw_efe_terms(runs: Sequence[Run]) -> Figure:
    """A bar a run: the share of each weighted term in the energy of its last epoch."""
    figure = Figure(figsize=(12, 1.6 + 0.55 * len(runs)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_title("EFE terms in the last epoch: share of λ · term", loc="left")
    for place, run in enumerate(runs):
        left = 0.0
        for term, share in (last_shares(run.record) or {}).items():
            color = TERM_COLORS[term]
            axes.barh(place, share, left=left, color=color, edgecolor="white", linewidth=1.0)
            if share >= _LEAST_SHARE_WITH_A_NUMBER:
                text = "white" if _luminance(color) < _DARK else "black"
                axes.text(left + share / 2, place, f"{share:.0%}", color=text, ha="center", va="center")
            left += share
        if left == 0.0:
            axes.text(0.01, place, "not logged", color="#555555", va="center")
    axes.set_yticks(range(len(runs)), [_label(run) for run in runs])
    axes.set(xlim=(0.0, 1.0), ylim=(len(runs) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    handles = [Line2D([], [], color=TERM_COLORS[term], marker="s", linestyle="", markersize=9) for term in LAMBDAS]
    figure.legend(handles, list(LAMBDAS), loc="outside lower center", ncols=len(LAMBDAS), frameon=False)
    return figure


def style_of(runs: Sequence[Run], run: Run) -> tuple[str, Dash]:
    """Colour and dash of a run's line: seven colours, then the same ones dashed."""
    times, place = divmod(runs.index(run), len(_COLORS))
    return _COLORS[place], _DASHES[times]


def smooth(x: Sequence[float], y: Sequence[float]) -> Series:
    """The running mean over an odd number of points, about a tenth of all, each at the middle of its points."""
    width = len(y) // 10 | 1
    mean = np.convolve(y, np.full(width, 1 / width), mode="valid") if y else np.empty(0)
    start = (width - 1) // 2
    return list(x[start : start + len(mean)]), mean.tolist()


def _draw_smoothed(axes: Axes, series: Series, color: str, dash: Dash) -> None:
    x, y = series
    mean_x, mean = smooth(x, y)
    if len(mean) < len(y):
        axes.plot(x, y, color=color, linewidth=0.7, alpha=0.3)
    marker = "o" if len(mean) == 1 else ""
    axes.plot(mean_x, mean, color=color, linestyle=dash, linewidth=1.8, marker=marker)


def _logged(record: RunRecord, key: str) -> Iterator[tuple[float, float]]:
    return ((float(step["step"]), value) for step in record.steps if (value := number(step, key)) is not None)


def _validated(record: RunRecord) -> Iterator[tuple[float, float]]:
    """By the step after which each epoch ended; those whose step is not known are left out."""
    ends = {step["epoch"]: step["step"] for step in record.steps if step.get("epoch") is not None}
    ends |= {validation.epoch: validation.step for validation in record.validations}
    for epoch in record.epochs:
        exact = number(epoch, "val/exact")
        if exact is not None and epoch["epoch"] in ends:
            yield float(ends[epoch["epoch"]]), exact


def _over(record: RunRecord, points: Iterator[tuple[float, float]], by_query: bool) -> Series:
    scale = float(record.config["train.batch_size"]) if by_query else 1.0
    pairs = list(points)
    return [scale * x for x, _ in pairs], [y for _, y in pairs]


def _label(run: Run) -> str:
    half = _LONGEST_NAME // 2
    name = run.name if len(run.name) <= _LONGEST_NAME else f"{run.name[:half]}…{run.name[-half:]}"
    return f"{run.letter}  {name}".replace("$", r"\$")


def _luminance(color: str) -> float:
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))
