"""Runs read back as they were written, and what is no run refused."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
from shared.made_records import answers, made_record
from shared.made_runs import make_run

from arcdist.analysis.record import read_run, read_run_folder
from arcdist.errors import ConfigError, DataError
from arcdist.tracking.wandb import RunData, is_wandb_path


def test_a_run_folder_is_read_whole(tmp_path):
    record = read_run_folder(make_run(tmp_path / "run", flags=("--seed", "3"), epochs=2))
    assert record.identity.name == "run"
    assert record.config["train.seed"] == 3
    assert record.config["data.augment.colors"] is False
    assert [step["step"] for step in record.steps] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert [epoch["epoch"] for epoch in record.epochs] == [0, 1]
    assert record.best["metric"] == "val/exact"
    assert [validation.step for validation in record.validations] == [40, 80]
    last = record.validations[-1]
    exact = sum(result.exact for result in last.results.values()) / len(last.results)
    assert exact == record.epochs[-1]["val/exact"]
    assert last.shown[0].input == ((0, 0), (7, 8), (9, 0))


def test_time_and_cost_are_those_of_the_end():
    record = made_record(
        steps=[{"step": 1, "pairs_per_s": 10.0, "time/elapsed_s": 9.0}, {"step": 2, "pairs_per_s": 30.0}],
        epochs=[{"pairs_per_s": 70.0, "time/elapsed_s": 900.0, "time/device_hours": 0.5}],
        exact=[answers("1111"), answers("1110")],
    )
    assert (record.elapsed, record.device_hours, record.pace) == (900.0, 0.5, 20.0)
    assert (record.exact_queries, record.exact_per_device_hour) == (3, 6.0)
    assert made_record(epochs=[{"pairs_per_s": 70.0}]).pace == 70.0
    unknown = made_record(epochs=[{"time/elapsed_s": None, "time/device_hours": 0.0}], exact=[answers("1")])
    assert (unknown.elapsed, unknown.pace, unknown.exact_per_device_hour) == (None, None, None)


def test_the_line_that_is_being_written_is_left_out_and_left_alone(tmp_path):
    steps = make_run(tmp_path / "run", epochs=1) / "steps.jsonl"
    content = steps.read_bytes() + b'{"step": 50, "lo'
    steps.write_bytes(content)
    assert len(read_run_folder(tmp_path / "run").steps) == 4
    assert steps.read_bytes() == content


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: there is no such folder"):
        read_run_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is not a run folder"):
        read_run_folder(tmp_path)


@pytest.mark.parametrize("part", ["wandb", "wandb/run-20260102_030405-abcdefgh", "wandb/latest/run-abcdefgh.wandb"])
def test_what_w_and_b_keeps_in_a_run_folder_leads_to_that_folder(tmp_path, monkeypatch, part):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "mine", epochs=1)
    for name in ("run-20260102_030405-abcdefgh", "latest"):
        (run / "wandb" / name).mkdir(parents=True)
        (run / "wandb" / name / "run-abcdefgh.wandb").touch()
    with pytest.raises(ConfigError, match=rf"^mine/{part} is a part of a run: name the run's folder, mine\.$"):
        read_run(f"mine/{part}")
    monkeypatch.chdir(run / "wandb")
    with pytest.raises(ConfigError, match=f"name the run's folder, {run}"):
        read_run(str((run / part).relative_to(run / "wandb")))
    # Away from its run nothing says where that is.
    (run / "wandb").rename(tmp_path / "wandb")
    with pytest.raises(ConfigError, match="is what W&B keeps of a run: name the run's folder, or upload it"):
        read_run(str(tmp_path / part))


def test_a_run_without_steps_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no logged step yet"):
        read_run_folder(make_run(tmp_path / "run", epochs=0))


def test_a_broken_validation_is_named(tmp_path):
    (make_run(tmp_path / "run") / "validation" / "epoch_00001.json").write_text("[1]")
    with pytest.raises(DataError, match=r"epoch_00001\.json is not a validation"):
        read_run_folder(tmp_path / "run")


def test_a_broken_configuration_is_named(tmp_path):
    path = make_run(tmp_path / "run", epochs=1) / "config.yaml"
    for content, told in (
        ("a: [1", ""),
        ("[1]", ""),
        ("train: {epochs: many}", r" \(ValueError\(\"train\.epochs is 'many'"),
        ("optim: {agent_lr: high}", r" \(ValueError"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=rf"config\.yaml is not a configuration of a run{told}"):
            read_run_folder(tmp_path / "run")
    path.write_text("optim: {agent_lr: 1e-05}")
    assert read_run_folder(tmp_path / "run").config == {"optim.agent_lr": 1e-05}


@pytest.mark.parametrize(
    ("name", "value"), [("data", ["a"]), ("versions", "x"), ("processes", "two"), ("started", 3), ("source", None)]
)
def test_an_identity_of_other_kinds_is_named(tmp_path, name, value):
    path = make_run(tmp_path / "run", epochs=1) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(DataError) as raised:
        read_run_folder(tmp_path / "run")
    error = TypeError(f"{name} is {value!r}")
    assert str(raised.value) == f"{path} is not the identity of a run ({error!r}): repair it, or leave that run out."


def test_each_name_goes_to_its_reader(tmp_path, monkeypatch):
    kept = made_record("on the server", exact=[answers("10")])
    sent = RunData(**{field.name: getattr(kept, field.name) for field in fields(RunData)})
    monkeypatch.setattr("arcdist.analysis.record.read_wandb_run", lambda _: sent)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", epochs=1)
    assert read_run("run").identity.name == "run"
    assert read_run("team/project/abcdefgh") == replace(kept, place="team/project/abcdefgh")


def test_a_mistyped_folder_is_not_looked_for_on_the_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "old").mkdir(parents=True)
    with pytest.raises(ConfigError, match="runs/old/mistyped: there is no such folder"):
        read_run("runs/old/mistyped")
    with pytest.raises(ConfigError, match="runs/old is not a run folder"):
        read_run("runs/old")


def test_a_path_on_disk_is_none_of_the_server_nor_is_a_mistyped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "old" / "wandb").mkdir(parents=True)
    assert is_wandb_path("team/project/abcdefgh")
    for here in ("runs/old/wandb", "runs/old/mistyped", "runs/old"):
        assert not is_wandb_path(here)
    for other in ("team/project", "team/project/abcdefgh/", "team/my project/abcdefgh"):
        assert not is_wandb_path(other)
    for here in ("/team/project/abcdefgh", "./project/abcdefgh", "../project/abcdefgh", "~/project/abcdefgh"):
        assert not is_wandb_path(here)


def test_a_run_folder_is_read_without_w_and_b(tmp_path):
    run = make_run(tmp_path / "run", epochs=1)
    program = """\
import sys
sys.modules["wandb"] = None  # cannot be imported
from arcdist.analysis.record import read_run
print(read_run(sys.argv[1]).identity.name)
"""
    printed = subprocess.run(
        [sys.executable, "-c", program, str(run)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert printed == "run\n"
