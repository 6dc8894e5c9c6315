"""Curves and bars of several runs, by the data that is drawn."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from shared.made_records import answers, made_record

from arcdist.analysis.plots import draw_curves, draw_efe_terms, draw_panels, style_of
from arcdist.analysis.scores import letter_runs
from arcdist.config.schema import EFE_TERMS
from arcdist.tracking.plots import BLUE, VERMILION

WEIGHTS = dict.fromkeys((f"efe.{key.name}" for key in EFE_TERMS.values()), 1.0)


def run_with(name, steps=3, batch_size=32):
    logged = [
        {"step": 10 * step, "epoch": 0, "loss": 1 / step, "reward/mean": 0.1, "grad_norm/qwen": 0.2, "pairs_per_s": 9.0}
        for step in range(1, steps + 1)
    ]
    return made_record(
        name,
        steps=logged,
        epochs=[{"val/exact": 0.5, **{f"efe/{term}": 1.0 for term in EFE_TERMS}}],
        exact=[answers("10")],
        config={"train.batch_size": batch_size, **WEIGHTS},
    )


def lines(axes, color):
    return [line for line in axes.get_lines() if line.get_color() == color]


def test_each_run_is_drawn_in_its_colour_on_common_axes():
    runs = letter_runs([run_with("x", steps=40), run_with("y")])
    figure = draw_curves(runs)
    loss, exact, reward, norm, pace, legend = figure.axes
    assert figure.get_size_inches().tolist() == [12, 7]
    strong, pale = sorted(lines(loss, BLUE), key=lambda line: len(line.get_xdata()))
    assert (len(strong.get_xdata()), len(pale.get_xdata())) == (36, 40)
    assert pale.get_alpha() < 0.5
    (other,) = lines(loss, VERMILION)
    assert other.get_ydata() == pytest.approx([1, 1 / 2, 1 / 3])
    assert [len(axes.get_lines()) > 1 for axes in (exact, reward, norm, pace)] == [True] * 4
    # By the step after which the epoch was validated.
    assert [(line.get_xdata(), line.get_ydata()) for line in lines(exact, BLUE)] == [([10.0], [0.5])]
    assert [text.get_text() for text in legend.get_legend().get_texts()] == ["A  x", "B  y"]
    assert loss.get_xlabel() == "step"


def test_runs_with_other_batches_are_drawn_over_queries():
    loss = draw_curves(letter_runs([run_with("x"), run_with("y", batch_size=8)])).axes[0]
    assert loss.get_xlabel() == "training queries"
    assert lines(loss, BLUE)[0].get_xdata() == pytest.approx([320, 640, 960])
    assert lines(loss, VERMILION)[0].get_xdata() == pytest.approx([80, 160, 240])


def test_runs_that_logged_nothing_still_get_their_panels():
    runs = letter_runs([made_record("x"), made_record("$y$")])
    curves, terms = draw_curves(runs), draw_efe_terms(runs)
    assert [axes.texts[0].get_text() for axes in curves.axes[:5]] == ["not logged"] * 5
    assert [text.get_text() for text in terms.axes[0].texts] == ["not logged"] * 2
    for figure in (curves, terms):
        figure.draw_without_rendering()


def test_a_bar_holds_the_shares_of_the_terms():
    runs = letter_runs([run_with("x"), made_record("y")])
    bars = draw_efe_terms(runs).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([1 / 7] * 7)
    assert [bar.get_x() for bar in bars] == pytest.approx(np.arange(7) / 7)
    assert [bar.get_facecolor()[:3] for bar in bars] == [to_rgb(key.metadata["color"]) for key in EFE_TERMS.values()]


@pytest.mark.parametrize("count", [2, 26])
def test_a_panel_alone_is_that_of_the_whole_picture(count):
    runs = letter_runs([run_with(f"name {number}", steps=40, batch_size=8 + number % 2) for number in range(count)])
    *curves, shares = draw_panels(runs).values()
    for alone, beside in zip(curves, draw_curves(runs).axes, strict=False):
        (panel,) = alone.axes
        assert (panel.get_title(), panel.get_xlabel(), panel.get_ylim()) == (
            beside.get_title(), beside.get_xlabel(), beside.get_ylim()
        )  # fmt: skip
        assert [line.get_xydata().tolist() for line in panel.get_lines()] == [
            line.get_xydata().tolist() for line in beside.get_lines()
        ]
        (legend,) = alone.legends
        assert [text.get_text() for text in legend.get_texts()] == [run.letter for run in runs]
    bars, whole_bars = shares.axes[0].patches, draw_efe_terms(runs).axes[0].patches
    assert [bar.get_bbox().bounds for bar in bars] == [bar.get_bbox().bounds for bar in whole_bars]
    assert [label.get_text() for label in shares.axes[0].get_yticklabels()] == [run.letter for run in runs]


@pytest.mark.parametrize("count", [2, 26])
def test_nothing_of_a_panel_lies_outside_it_or_in_another_s_place(count):
    runs = letter_runs([run_with(f"name {number}", steps=40) for number in range(count)])
    for figure in draw_panels(runs).values():
        assert figure.get_size_inches()[0] == 3.8
        figure.draw_without_rendering()
        (axes,), (legend,) = figure.axes, figure.legends
        panel, key = axes.get_tightbbox(), legend.get_window_extent()
        for box in (panel, key):
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
        assert key.y1 <= panel.y0
        assert axes.get_window_extent().height >= 160


def test_more_runs_than_colours_are_told_apart_by_dashes():
    runs = letter_runs([made_record(str(number)) for number in range(26)])
    assert len({style_of(runs, run) for run in runs}) == 26
    assert [style_of(runs, runs[place]) for place in (0, 7)] == [(BLUE, "-"), (BLUE, "--")]


def test_long_names_are_shortened_in_the_middle():
    name = "arcdist_20260102_030405_" + "x" * 40
    legend = draw_curves(letter_runs([made_record(name), made_record("y")])).axes[5].get_legend()
    assert legend.get_texts()[0].get_text() == "A  arcdist_2026010…xxxxxxxxxxxxxxx"
