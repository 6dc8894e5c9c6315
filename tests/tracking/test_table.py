import io
from pathlib import Path

from rich.console import Console

from arcdist.tracking import epoch_table


def rows(renderable):
    text = io.StringIO()
    Console(file=text, width=100).print(renderable)
    return [line.strip() for line in text.getvalue().splitlines() if line.strip()]


def cells(row):
    return [cell.strip() for cell in row.split("  ") if cell.strip()]


def test_scores_stand_beside_the_floor():
    last = {
        "epoch": 4, "val/exact": 0.0347, "val/cell": 0.8, "val/size": 0.9, "val/accuracy_delta": 0.0012,
        "train/exact": 0.25, "floor/copy_exact": 0.0, "floor/copy_cell": 0.712,
    }  # fmt: skip
    best = {"metric": "val/exact", "epoch": 3, "val/exact": 0.04, "val/cell": 0.79, "val/accuracy_delta": -0.01}
    table = rows(epoch_table(last, best, {"run folder": Path("runs/a"), "plot": Path("runs/a/metrics_plot.png")}))
    assert cells(table[0]) == ["validation", "epoch 4", "best: epoch 3", "copying the input"]
    assert [cells(row) for row in table[2:7]] == [
        ["exact grids", "3.47 %", "4.00 %", "0.00 %"],
        ["cells", "80.00 %", "79.00 %", "71.20 %"],
        ["grid sizes", "90.00 %", "–", "–"],
        ["exact grids in training", "25.00 %", "–", "–"],
        ["cells gained by refinement", "+0.12 %", "-1.00 %", "–"],
    ]
    assert [cells(row) for row in table[7:]] == [["run folder", "runs/a"], ["plot", "runs/a/metrics_plot.png"]]


def test_a_run_without_validation_shows_dashes():
    table = rows(epoch_table({"epoch": 0}, {}, {}))
    assert cells(table[0]) == ["validation", "epoch 0", "best", "copying the input"]
    assert cells(table[2]) == ["exact grids", "–", "–", "–"]


def test_long_paths_are_shown_whole():
    path = "/".join(["folder"] * 20)
    table = rows(epoch_table({"epoch": 0}, {}, {"run folder": Path(path)}))
    assert "".join(table[7:]).replace(" ", "").removeprefix("runfolder") == path
