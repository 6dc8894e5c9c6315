"""The pictures of a comparison: its panels side by side as files, and each alone for a page."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from arcdist.comparison.efe_shares import LAMBDAS
from arcdist.comparison.panels import CURVES, draw_curve, draw_shares, style_of
from arcdist.comparison.runs import Run
from arcdist.tracking.plots import TERM_COLORS

_LONGEST_NAME = 31
_WIDTH = 3.8
"""Inches of a panel that stands alone: no more than a phone shows at its full size."""
_HEIGHT = 3.0
_LEGEND_ROW = 0.22
_BAR = 0.26
_LETTERS_IN_A_ROW = 6
_TERMS_IN_A_ROW = 3


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Loss, exact grids, reward, Qwen's gradient norm and pace over the steps, with the legend in the sixth place."""
    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    *panels, legend = figure.subplots(2, 3).flat
    for axes, key in zip(panels, CURVES, strict=True):
        draw_curve(axes, runs, key)
    legend.set_axis_off()
    legend.legend(_lines(runs), [_label(run) for run in runs], loc="upper left", frameon=False, borderaxespad=0.0)
    return figure


def draw_efe_terms(runs: Sequence[Run]) -> Figure:
    """A bar a run: the share of each weighted term in the energy of its last epoch."""
    figure = Figure(figsize=(12, 1.6 + 0.55 * len(runs)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_title("EFE terms in the last epoch: share of λ · term", loc="left")
    draw_shares(axes, runs, [_label(run) for run in runs], least=0.05)
    figure.legend(_squares(), list(LAMBDAS), loc="outside lower center", ncols=len(LAMBDAS), frameon=False)
    return figure


def draw_panels(runs: Sequence[Run]) -> Mapping[str, Figure]:
    """Each panel as a figure of its own, by what it shows in words; runs go by their letters."""
    curves = {f"{title}, a line a run": _curve_figure(runs, key) for key, title in CURVES.items()}
    return {**curves, "Share of each EFE term in each run's last epoch": _shares_figure(runs)}


def _curve_figure(runs: Sequence[Run], key: str) -> Figure:
    columns = min(len(runs), _LETTERS_IN_A_ROW)
    figure = _panel_figure(_HEIGHT, -(-len(runs) // columns))
    draw_curve(figure.subplots(), runs, key)
    letters = [run.letter for run in runs]
    figure.legend(
        _lines(runs), letters, loc="outside lower center", ncols=columns, frameon=False, handlelength=1.6,
        columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
    return figure


def _shares_figure(runs: Sequence[Run]) -> Figure:
    rows = -(-len(LAMBDAS) // _TERMS_IN_A_ROW)
    figure = _panel_figure(max(_HEIGHT - (rows - 1) * _LEGEND_ROW, 0.8 + _BAR * len(runs)), rows)
    axes = figure.subplots()
    axes.set_title("EFE terms: share of λ · term")
    draw_shares(axes, runs, [run.letter for run in runs], least=0.1)
    figure.legend(
        _squares(), list(LAMBDAS), loc="outside lower center", ncols=_TERMS_IN_A_ROW, frameon=False, handlelength=1.0,
        handletextpad=0.4, columnspacing=1.0, borderaxespad=0.2,
    )  # fmt: skip
    return figure


def _panel_figure(height: float, legend_rows: int) -> Figure:
    return Figure(figsize=(_WIDTH, height + _LEGEND_ROW * legend_rows), dpi=100, layout="constrained")


def _lines(runs: Sequence[Run]) -> list[Line2D]:
    styles = (style_of(runs, run) for run in runs)
    return [Line2D([], [], color=color, linestyle=dash, linewidth=2.5) for color, dash in styles]


def _squares() -> list[Line2D]:
    return [Line2D([], [], color=TERM_COLORS[term], marker="s", linestyle="", markersize=9) for term in LAMBDAS]


def _label(run: Run) -> str:
    half = _LONGEST_NAME // 2
    name = run.name if len(run.name) <= _LONGEST_NAME else f"{run.name[:half]}…{run.name[-half:]}"
    return f"{run.letter}  {name}".replace("$", r"\$")
