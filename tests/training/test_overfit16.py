"""The whole pipeline learns: a few tasks, until nearly all their training queries are exact grids."""

import json

import pytest

from arcdist.config import load_config
from arcdist.distributed import FailureWatch
from arcdist.training.run import train


@pytest.mark.slow
@pytest.mark.usefixtures("clean_process")
def test_overfit16_learns_nine_of_ten_training_queries(tmp_path):
    loaded = load_config(["--recipe", "overfit16", "--output_dir", str(tmp_path / "run")])
    assert loaded.config.data.max_tasks == 16
    assert loaded.config.data.max_side == 10
    assert train(loaded, FailureWatch()) == 0
    epochs = json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"]
    assert epochs[-1]["epoch"] == loaded.config.train.epochs - 1
    assert epochs[-1]["train/exact"] >= 0.9
    # Learned, not given: the first epoch solves few.
    assert epochs[0]["train/exact"] < 0.5
