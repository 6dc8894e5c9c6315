"""Runs that W&B kept in files: killed, resumed, read back as they were written, and without anybody's secrets."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import mirrored
from shared.made_runs import make_run
from shared.mirrored import catch_up, children, log_steps, wait_until, without_accounts

from arcdist.analysis.record import read_run_folder
from arcdist.config import load_config
from arcdist.errors import ConfigError, DataError, PlatformError
from arcdist.tracking import wandb_run as wandb_log
from arcdist.tracking.mirror import open_mirrors
from arcdist.tracking.wandb_reader import is_wandb_folder, read_wandb_folder, read_wandb_run, steps_in
from arcdist.tracking.wandb_run import read_log

pytestmark = pytest.mark.slow

FLAGS = ("--recipe", "quickstart", "--epochs", "3", "--tracking.wandb", "offline")
KEY = "fedcba9876543210fedcba9876543210fedcba98"
TOKEN = "hf_ThisIsNobodysBusiness"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run, and the folder of one with its records that was killed after step 70 and resumed from step 40."""
    root = tmp_path_factory.mktemp("kept")
    source = make_run(root / "source", flags=FLAGS[4:])
    record = read_run_folder(source)
    folder = root / "run folder"
    folder.mkdir()
    (root / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        without_accounts(patch, root / "home")
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.chdir(root / "elsewhere")
        paths = [str(Path(wandb_log.__file__).parents[2]), str(Path(mirrored.__file__).parents[1])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        killed = subprocess.Popen([sys.executable, mirrored.__file__, str(source), str(folder), *FLAGS])
        try:
            wait_until(lambda: 70 in steps_in(folder / "wandb", record.identity.id), 40)
            assert len(children()) >= 3  # the run, the process that holds W&B's run, W&B's own
        finally:
            left = children()
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        psutil.wait_procs(left, timeout=15)
        gone = not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)
        mirrors = open_mirrors(folder, record.identity, load_config(FLAGS).config, best_metric="val/exact")
        catch_up(mirrors, record, 40)
        log_steps(mirrors, record, range(50, 121, 10))
        mirrors.close(0)
        assert list((root / "elsewhere").iterdir()) == []
    return record, folder, gone


def inspected(file):
    """The records of a W&B file in JSON, as W&B's own program reads them."""
    from wandb.util import get_core_path

    inspect = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-run-file", str(file)]
    told = subprocess.run(inspect, capture_output=True, text=True, timeout=30, check=True).stdout
    return told.splitlines()


def test_each_step_stands_once_over_a_kill_and_a_resume_for_w_and_b_as_well(kept):
    record, folder, _ = kept
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    own, theirs = Counter(), Counter()
    for file in files:
        own.update(row["_step"] for row in read_log(file).rows)
        theirs.update(
            json.loads(line)["history"]["step"]["num"] for line in inspected(file) if '"type":"history"' in line
        )
    assert own == theirs == Counter(step["step"] for step in record.steps)


def test_the_run_is_read_back_as_it_was_written(kept):
    record, folder, _ = kept
    read = read_wandb_folder(folder / "wandb")
    for ours, theirs in ((read.steps, record.steps), (read.epochs, record.epochs), ([read.best], [record.best])):
        # As text 1 is not 1.0.
        assert [json.dumps(one, sort_keys=True) for one in ours] == [json.dumps(one, sort_keys=True) for one in theirs]
    assert read.validations == record.validations
    assert read.identity == record.identity
    assert read.place == str(folder / "wandb")
    assert {name: repr(value) for name, value in read.config.items()} == {
        name: repr(value) for name, value in record.config.items()
    }


def test_any_folder_of_a_resumed_run_stands_for_all(kept, tmp_path):
    record, folder, _ = kept
    first, second = sorted((folder / "wandb").glob("offline-run-*"))
    assert read_wandb_folder(first).steps == read_wandb_folder(second).steps == record.steps
    assert all(map(is_wandb_folder, (first, second, folder / "wandb")))
    assert not is_wandb_folder(folder)
    shutil.copytree(first, tmp_path / first.name)
    assert [step["step"] for step in read_wandb_folder(tmp_path / first.name).steps] == [10, 20, 30, 40, 50, 60, 70]


def test_nothing_of_a_killed_run_hangs_around(kept):
    assert kept[2]


def test_no_secret_and_nothing_of_the_machine_is_written(kept):
    _, folder, _ = kept
    for path in folder.parent.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(secret.encode() in content for secret in (KEY, TOKEN)), path
    logs = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert logs
    # A short name of a machine stands in compressed bytes by chance.
    quoted = json.dumps(os.uname().nodename)
    assert not any(quoted in line for log in logs for line in inspected(log))
    texts = [path for path in (folder / "wandb").rglob("*") if path.suffix in (".json", ".log", ".txt", ".yaml")]
    assert texts
    assert not any(re.search(rf"\b{re.escape(os.uname().nodename)}\b", path.read_text()) for path in texts)
    written = {path.name for path in (folder / "wandb").rglob("*")}
    assert not written & {"requirements.txt", "wandb-metadata.json", "diff.patch", "output.log", "latest-run"}


@pytest.fixture(scope="module")
def log_file(kept):
    return min((kept[1] / "wandb").glob("offline-run-*/run-*.wandb"))


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1))
def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(log_file, tmp_path_factory, share):
    content = log_file.read_bytes()
    cut = tmp_path_factory.mktemp("cut") / log_file.name
    cut.write_bytes(content[: int(share * len(content))])
    rows = read_log(log_file).rows
    read = read_log(cut).rows
    assert read == rows[: len(read)]


@pytest.mark.parametrize("length", range(16))
def test_a_run_killed_before_its_first_record_has_no_rows(log_file, tmp_path, length):
    cut = tmp_path / log_file.name
    cut.write_bytes(log_file.read_bytes()[:length])
    assert read_log(cut).rows == []


def test_a_broken_part_ends_the_reading(log_file, tmp_path):
    content = bytearray(log_file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / log_file.name).write_bytes(content)
    rows = read_log(log_file).rows
    read = read_log(tmp_path / log_file.name).rows
    assert 0 < len(read) < len(rows)
    assert read == rows[: len(read)]


def test_what_is_no_run_is_refused(kept, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="nowhere: there is no such folder"):
        read_wandb_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is no folder of a W&B run: it holds no run-ID\.wandb"):
        read_wandb_folder(tmp_path)
    with pytest.raises(ConfigError, match="is no W&B run: give ENTITY/PROJECT/RUN_ID"):
        read_wandb_run("runs/one")
    other = tmp_path / "offline-run-20260102_030405-other"
    other.mkdir()
    (other / "run-other.wandb").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"run-other\.wandb is no file of a W&B run"):
        read_wandb_folder(other)
    first = min((kept[1] / "wandb").glob("offline-run-*"))
    monkeypatch.setattr(wandb_log, "find_spec", lambda name: None)
    with pytest.raises(PlatformError, match=r"without wandb: pip install 'arcdist\[wandb\]'"):
        read_wandb_folder(first)


def test_folders_of_several_runs_are_not_one(kept, tmp_path):
    first = min((kept[1] / "wandb").glob("offline-run-*"))
    shutil.copytree(first, tmp_path / first.name)
    # The same log of a run with an id of as many characters.
    other = tmp_path / "offline-run-20260102_030405-zzzzzzzz"
    other.mkdir()
    from wandb.proto.wandb_internal_pb2 import Record

    run = Record()
    run.run.run_id = "zzzzzzzz"
    (other / "run-zzzzzzzz.wandb").write_bytes(_log_of(run.SerializeToString()))
    with pytest.raises(ConfigError, match=rf"holds several runs \({kept[0].identity.id}, zzzzzzzz\)"):
        read_wandb_folder(tmp_path)
    with pytest.raises(ConfigError, match="is no run of arcdist: its configuration in W&B lacks `run`"):
        read_wandb_folder(other)


def _log_of(record: bytes) -> bytes:
    import struct
    import zlib

    return b":W&B\xe1\xbe\x00" + struct.pack("<IHB", zlib.crc32(record, zlib.crc32(b"\x01")), len(record), 1) + record
