"""A run's curves: what they show, where they are, and what is left out."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from arcdist.config.schema import EFE_TERMS
from arcdist.tracking import plots
from arcdist.tracking.plots import BLUE, VERMILION, Curves, panel_figure, plot_metrics, running_mean


def drawn(image, color):
    """Pixels of exactly this colour."""
    return int((np.abs(image[..., :3] - np.array(to_rgb(color))) < 0.01).all(-1).sum())


def epoch_record(epoch, **changes):
    return {
        "epoch": epoch, "train/loss": 1.0, "train/exact": 0.2, "val/exact": 0.05, "val/cell": 0.8, "val/size": 0.7,
        "floor/copy_exact": 0.0, "floor/copy_cell": 0.75, **{f"efe/{term}": 0.5 for term in EFE_TERMS}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(("epochs", "steps"), [(1, 0), (5, 22), (100, 400)])
def test_four_panels_at_the_documented_size(tmp_path, epochs, steps):
    path = tmp_path / "plot.png"
    records = [epoch_record(epoch) for epoch in range(epochs)]
    logged = [{"step": 50 * i, "loss": 2.0 / (i + 1), "efe/risk": 1.0} for i in range(steps)]
    plot_metrics(Curves(epochs=records, best={"metric": "val/exact", **records[-1]}, steps=logged), path)
    image = imread(path)
    assert image.shape[:2] == (800, 1200)
    upper_left, upper_right, lower_left, lower_right = (
        image[rows, columns] for rows in (slice(400), slice(400, 800)) for columns in (slice(600), slice(600, 1200))
    )
    assert drawn(upper_left, BLUE) > 20
    assert drawn(upper_right, VERMILION) > 20
    assert drawn(lower_left, VERMILION) > 20
    assert drawn(lower_right, EFE_TERMS["risk"].metadata["color"]) > 20
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_null_values_are_left_out(tmp_path):
    records = [epoch_record(0), epoch_record(1, **{"val/exact": None, "train/loss": None}), {"epoch": 2}]
    steps = [{"step": 1, "loss": None}, {"step": 2}]
    plot_metrics(Curves(epochs=records, best={}, steps=steps), tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").shape[:2] == (800, 1200)


def test_a_run_without_numbers_still_gets_its_panels(tmp_path):
    plot_metrics(Curves(epochs=[], best={}, steps=[]), tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").shape[:2] == (800, 1200)


RATES = ("lora", "prompt_projection", "control_mlp", "agent", "task_vectors", "solver", "efe", "refiner")
PANELS = [value for name, value in vars(plots).items() if name.startswith("draw_")]


def axes_of(panel, *, epochs=(), best=None, steps=()):
    (axes,) = panel_figure(panel, Curves(epochs=epochs, best=best or {}, steps=steps)).axes
    return axes


def lines_of(axes):
    return {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}


def test_there_are_eight_panels():
    assert len(PANELS) == 8


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_without_numbers_says_so(panel):
    axes = axes_of(panel, steps=[{"step": 1, "epoch": 0, "flags": ["loss_not_finite"]}])
    assert [text.get_text() for text in axes.texts] == ["nothing recorded"]
    assert axes.get_legend() is None
    assert axes.get_title(loc="left") != ""


@pytest.mark.parametrize("panel", PANELS)
def test_neither_title_nor_legend_lies_on_the_curves_or_off_the_picture(panel):
    steps = [
        {"step": step, "loss": 1.0, "reward/mean": 0.1, "grad_norm/qwen": 0.1, "pairs_per_s": 1e5 + step}
        | {f"efe/{term}": 1.0 for term in EFE_TERMS}
        | {f"lr/{name}": float(index) for index, name in enumerate(RATES, start=1)}
        for step in range(1, 80)
    ]
    records = [epoch_record(0), epoch_record(1)]
    figure = panel_figure(
        panel, Curves(epochs=records, best={"metric": "val/accuracy_delta", **records[1]}, steps=steps)
    )
    assert tuple(figure.get_size_inches()) == (6.0, 4.0)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    panel_box = axes.get_window_extent()
    legend = axes.get_legend().get_window_extent()
    title = axes._left_title.get_window_extent()
    # The room below the title's letters may hold the legend's empty border.
    assert panel_box.y1 <= legend.y0 + 1 < legend.y1 <= title.y0 + 3 < title.y1 <= 400
    assert legend.x1 <= 600
    assert panel_box.height > 220


def test_a_running_mean_is_over_a_twentieth_and_in_the_middle_of_its_steps():
    steps = [{"step": 10 * index, "loss": float(index)} for index in range(60)]
    lines = axes_of(plots.draw_loss, steps=steps).get_lines()
    assert [line.get_label() for line in lines] == ["loss", "running mean of 3 logged steps"]
    assert lines[0].get_ydata().tolist() == [step["loss"] for step in steps]
    assert lines[1].get_xdata().tolist() == [step["step"] for step in steps[1:-1]]
    assert lines[1].get_ydata() == pytest.approx([float(index) for index in range(1, 59)])


def test_a_running_mean_is_at_the_middle_of_its_points():
    assert running_mean([1.0, 2.0, 3.0], [5.0, 1.0, 3.0], 1) == ([1.0, 2.0, 3.0], [5.0, 1.0, 3.0])
    x, y = running_mean([float(number) for number in range(30)], [float(number % 3) for number in range(30)], 3)
    assert x == list(range(1, 29))
    assert y == pytest.approx([1.0] * 28)
    assert running_mean([], [], 1) == ([], [])


def test_learning_rates_that_are_the_same_share_a_line():
    steps = [{"step": step, "lr/lora": 1e-3 / step, "lr/mlp": 1e-3 / step, "lr/agent": 1e-2} for step in (1, 2, 4)]
    assert lines_of(axes_of(plots.draw_learning_rates, steps=steps)) == {
        "agent": [1e-2] * 3, "lora, mlp": [1e-3, 5e-4, 2.5e-4]
    }  # fmt: skip


def test_a_gradient_that_is_never_there_is_drawn_as_zero():
    axes = axes_of(plots.draw_gradient, steps=[{"step": step, "grad_norm/qwen": 0.0} for step in (1, 2)])
    assert lines_of(axes) == {"norm before clipping": [0.0, 0.0]}
    assert axes.get_yscale() == "linear"
