"""Which reader a name is given to, and what becomes of names that none can read."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from shared.made_records import made_record
from shared.made_runs import make_run

from arcdist.comparison import reading
from arcdist.comparison.reading import read_run, read_runs
from arcdist.errors import ConfigError, DataError
from arcdist.tracking.run_record import read_run_folder
from arcdist.tracking.wandb_files import is_wandb_path


@pytest.fixture
def wandb(monkeypatch):
    """Stand-ins for the readers of what W&B keeps."""
    monkeypatch.setattr(reading, "read_wandb_folder", lambda folder: made_record(f"from {folder.name}"))
    monkeypatch.setattr(reading, "read_wandb_run", made_record)


def test_each_name_goes_to_its_reader(tmp_path, monkeypatch, wandb):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", epochs=1)
    offline = tmp_path / "offline-run-20260102_030405-abcdefgh"
    offline.mkdir()
    (offline / "run-abcdefgh.wandb").write_bytes(b"")
    assert read_run("run").identity.name == "run"
    assert read_run(str(offline)).identity.name == f"from {offline.name}"
    assert read_run("team/project/abcdefgh").place == "team/project/abcdefgh"


def test_a_run_folder_is_read_without_w_and_b(tmp_path):
    run = make_run(tmp_path / "run", epochs=1)
    program = """\
import sys
sys.modules["wandb"] = None  # cannot be imported
from arcdist.comparison.reading import read_run
print(read_run(sys.argv[1]).identity.name)
"""
    printed = subprocess.run(
        [sys.executable, "-c", program, str(run)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert printed == "run\n"


def test_a_path_on_disk_is_none_of_the_server_nor_is_a_mistyped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "old" / "wandb").mkdir(parents=True)
    assert is_wandb_path("team/project/abcdefgh")
    assert not is_wandb_path("runs/old/wandb")
    assert not is_wandb_path("runs/old/mistyped")
    for other in ("runs/old", "team/project", "team/project/abcdefgh/", "team/my project/abcdefgh"):
        assert not is_wandb_path(other)
    for here in ("/team/project/abcdefgh", "./project/abcdefgh", "../project/abcdefgh", "~/project/abcdefgh"):
        assert not is_wandb_path(here)


def test_a_mistyped_folder_is_not_looked_for_on_the_server(tmp_path, monkeypatch, wandb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "old").mkdir(parents=True)
    with pytest.raises(ConfigError, match="runs/old/mistyped: there is no such folder"):
        read_run("runs/old/mistyped")
    with pytest.raises(ConfigError, match="runs/old is no run folder"):
        read_run("runs/old")


def test_what_can_be_read_is_and_the_rest_is_told(tmp_path, monkeypatch, wandb):
    def no_network(path):
        raise DataError(f"{path} cannot be read: there is no network.")

    monkeypatch.setattr(reading, "read_wandb_run", no_network)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", epochs=1)
    make_run(tmp_path / "empty", flags=("--seed", "1"), epochs=0)
    make_run(tmp_path / "other", flags=("--seed", "2"), epochs=1)
    records, refused = read_runs(["run", "empty", "team/project/abcdefgh", "other", "./run"])
    assert [record.place for record in records] == ["run", "other"]
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    assert refused == [
        "empty holds no logged step yet: wait until the run has made --output.log_every steps.",
        "team/project/abcdefgh cannot be read: there is no network.",
        f"./run is the same run as run ({run_id}): name each run once.",
    ]


def test_the_folders_that_w_and_b_wrote_of_one_run_stand_for_it_once_a_copied_run_folder_is_told(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", epochs=1)
    copy = shutil.copytree(run, tmp_path / "copy")
    records, (told,) = read_runs([str(run), str(copy)])
    assert [record.place for record in records] == [str(run)]
    assert told.startswith(f"{copy} is the same run as {run} (")
    folders = [tmp_path / "wandb" / f"offline-run-20260102_03040{second}-abcdefgh" for second in (5, 6)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "run-abcdefgh.wandb").touch()
    record = read_run_folder(run)
    monkeypatch.setattr(reading, "read_wandb_folder", lambda folder: replace(record, place=str(folder)))
    records, refused = read_runs([str(folder) for folder in folders])
    assert ([record.place for record in records], refused) == ([str(folders[0])], [])
    _, (told,) = read_runs([str(tmp_path / "wandb"), str(shutil.copytree(tmp_path / "wandb", tmp_path / "again"))])
    assert told.startswith(f"{tmp_path / 'again'} is the same run as ")
