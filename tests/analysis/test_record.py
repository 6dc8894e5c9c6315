"""Runs read back as they were written, and folders that are none refused."""

import pytest
from shared.made_runs import make_run

from arcdist.analysis.record import read_run_folder
from arcdist.errors import ConfigError, DataError


def test_a_run_folder_is_read_whole(tmp_path):
    record = read_run_folder(make_run(tmp_path / "run", flags=("--seed", "3"), epochs=2))
    assert record.identity.name == "run"
    assert record.config["train.seed"] == 3
    assert record.config["data.augment.dihedral"] is False
    assert [step["step"] for step in record.steps] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert [epoch["epoch"] for epoch in record.epochs] == [0, 1]
    assert record.best["metric"] == "val/exact"
    assert [validation.step for validation in record.validations] == [40, 80]
    last = record.validations[-1]
    exact = sum(result.exact for result in last.results.values()) / len(last.results)
    assert exact == record.epochs[-1]["val/exact"]
    assert last.shown[0].input == ((0, 0), (7, 8), (9, 0))


def test_the_line_that_is_being_written_is_left_out_and_left_alone(tmp_path):
    steps = make_run(tmp_path / "run", epochs=1) / "steps.jsonl"
    content = steps.read_bytes() + b'{"step": 50, "lo'
    steps.write_bytes(content)
    assert len(read_run_folder(tmp_path / "run").steps) == 4
    assert steps.read_bytes() == content


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: there is no such folder"):
        read_run_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is no run folder"):
        read_run_folder(tmp_path)


def test_a_run_without_steps_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no logged step yet"):
        read_run_folder(make_run(tmp_path / "run", epochs=0))


def test_a_broken_validation_is_named(tmp_path):
    (make_run(tmp_path / "run") / "validation" / "epoch_00001.json").write_text("[1]")
    with pytest.raises(DataError, match=r"epoch_00001\.json is no validation"):
        read_run_folder(tmp_path / "run")
