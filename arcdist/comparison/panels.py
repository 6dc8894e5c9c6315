"""The panels of a comparison, each on axes of its own: how the runs went, and what their energy is made of."""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator, PercentFormatter

from arcdist.comparison.efe_shares import last_shares
from arcdist.comparison.logged import number
from arcdist.comparison.runs import Run
from arcdist.tracking.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, TERM_COLORS, VERMILION
from arcdist.tracking.run_record import RunRecord

Dash: TypeAlias = Literal["-", "--", "-.", ":"]
Series: TypeAlias = tuple[list[float], list[float]]

_EXACT = "val/exact"
CURVES = {
    "loss": "Training loss",
    _EXACT: "Exact grids in validation",
    "reward/mean": "Mean reward",
    "grad_norm/qwen": "Gradient norm of Qwen",
    "pairs_per_s": "Queries a second",
}
"""The title of each key that is drawn as a curve a run."""

_FROM_ZERO = (_EXACT, "grad_norm/qwen", "pairs_per_s")
_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_DASHES: tuple[Dash, ...] = ("-", "--", "-.", ":")
_MOST_MARKED_POINTS = 25
_DARK = 0.45
"""Luminance below which white is easier to read than black."""


def draw_curve(axes: Axes, runs: Sequence[Run], key: str) -> None:
    """One of `CURVES` over the steps; over the training queries where the runs have other batch sizes.

    Pale lines are logged values, strong ones a running mean over a tenth of them.
    """
    axes.set_title(CURVES[key])
    sizes = {run.record.config.get("train.batch_size") for run in runs}
    by_query = len(sizes) > 1 and None not in sizes
    for run in runs:
        if key == _EXACT:
            _draw_validated(axes, _over(run.record, _validated(run.record), by_query), *style_of(runs, run))
        else:
            _draw_smoothed(axes, _over(run.record, _logged(run.record, key), by_query), *style_of(runs, run))
    if key == _EXACT:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
    axes.set_xlabel("training queries" if by_query else "step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not any(np.size(line.get_xdata()) for line in axes.get_lines()):
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="#555555")
    if key in _FROM_ZERO:
        axes.set_ylim(bottom=0.0)


def draw_shares(axes: Axes, runs: Sequence[Run], labels: Sequence[str], *, least: float) -> None:
    """A bar a run: the share of each weighted term in the energy of its last epoch.

    `labels` name the bars; shares below `least` have no room for their number.
    """
    for place, run in enumerate(runs):
        left = 0.0
        for term, share in (last_shares(run.record) or {}).items():
            color = TERM_COLORS[term]
            axes.barh(place, share, left=left, color=color, edgecolor="white", linewidth=1.0)
            if share >= least:
                text = "white" if _luminance(color) < _DARK else "black"
                axes.text(left + share / 2, place, f"{share:.0%}", color=text, ha="center", va="center")
            left += share
        if left == 0.0:
            axes.text(0.01, place, "not logged", color="#555555", va="center")
    axes.set_yticks(range(len(runs)), labels)
    axes.set(xlim=(0.0, 1.0), ylim=(len(runs) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


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


def _draw_validated(axes: Axes, series: Series, color: str, dash: Dash) -> None:
    x, y = series
    marker = "o" if len(x) <= _MOST_MARKED_POINTS else ""
    axes.plot(x, y, marker=marker, markersize=4, color=color, linestyle=dash)


def _logged(record: RunRecord, key: str) -> Iterator[tuple[float, float]]:
    return ((float(step["step"]), value) for step in record.steps if (value := number(step, key)) is not None)


def _validated(record: RunRecord) -> Iterator[tuple[float, float]]:
    """By the step after which each epoch ended; those whose step is not known are left out."""
    ends = {step["epoch"]: step["step"] for step in record.steps if step.get("epoch") is not None}
    ends |= {validation.epoch: validation.step for validation in record.validations}
    for epoch in record.epochs:
        exact = number(epoch, _EXACT)
        if exact is not None and epoch["epoch"] in ends:
            yield float(ends[epoch["epoch"]]), exact


def _over(record: RunRecord, points: Iterator[tuple[float, float]], by_query: bool) -> Series:
    scale = float(record.config["train.batch_size"]) if by_query else 1.0
    pairs = list(points)
    return [scale * x for x, _ in pairs], [y for _, y in pairs]


def _luminance(color: str) -> float:
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))
