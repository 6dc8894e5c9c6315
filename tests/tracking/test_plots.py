import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from arcdist.tracking import ARC_COLORS, Example, plot_examples, plot_metrics
from arcdist.tracking.plots import BLUE, TERM_COLORS, VERMILION


def drawn(image, color):
    """Pixels of exactly this colour."""
    return int((np.abs(image[..., :3] - np.array(to_rgb(color))) < 0.01).all(-1).sum())


def epoch_record(epoch, **changes):
    return {
        "epoch": epoch, "train/loss": 1.0, "train/exact": 0.2, "val/exact": 0.05, "val/cell": 0.8, "val/size": 0.7,
        "floor/copy_exact": 0.0, "floor/copy_cell": 0.75, **{f"efe/{term}": 0.5 for term in TERM_COLORS}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(("epochs", "steps"), [(1, 0), (5, 22), (100, 400)])
def test_four_panels_at_the_documented_size(tmp_path, epochs, steps):
    path = tmp_path / "plot.png"
    records = [epoch_record(epoch) for epoch in range(epochs)]
    logged = [{"step": 50 * i, "loss": 2.0 / (i + 1), "efe/risk": 1.0} for i in range(steps)]
    plot_metrics({"epochs": records, "best": {"metric": "val/exact", **records[-1]}}, logged, path)
    image = imread(path)
    assert image.shape[:2] == (800, 1200)
    upper_left, upper_right, lower_left, lower_right = (
        image[rows, columns] for rows in (slice(400), slice(400, 800)) for columns in (slice(600), slice(600, 1200))
    )
    assert drawn(upper_left, BLUE) > 20
    assert drawn(upper_right, VERMILION) > 20
    assert drawn(lower_left, VERMILION) > 20
    assert drawn(lower_right, TERM_COLORS["risk"]) > 20
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_null_values_are_left_out(tmp_path):
    records = [epoch_record(0), epoch_record(1, **{"val/exact": None, "train/loss": None}), {"epoch": 2}]
    plot_metrics({"epochs": records, "best": {}}, [{"step": 1, "loss": None}, {"step": 2}], tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").shape[:2] == (800, 1200)


def test_a_run_without_numbers_still_gets_its_panels(tmp_path):
    plot_metrics({"epochs": [], "best": {}}, [], tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").shape[:2] == (800, 1200)


def test_examples_show_every_colour_of_arc(tmp_path):
    query = np.arange(10, dtype=np.uint8).reshape(2, 5)
    plot_examples([Example(name="a:test:0", query=query, prediction=query[:1], target=query)], tmp_path / "grids.png")
    image = imread(tmp_path / "grids.png")
    left, middle, _ = np.array_split(image, 3, axis=1)
    for number, color in enumerate(ARC_COLORS):
        assert drawn(left, color) > 500
        assert (drawn(middle, color) > 500) == (number < 5)


@pytest.mark.parametrize(
    ("prediction", "verdict"),
    [([[1, 2], [3, 4]], "solved"), ([[1, 0], [3, 0]], "2 of 4 cells wrong"), ([[1, 2]], "wrong size")],
)
def test_verdict(prediction, verdict):
    target = np.array([[1, 2], [3, 4]])
    assert Example(name="a", query=target, prediction=np.array(prediction), target=target).verdict == verdict
