"""Runs that W&B kept offline: killed, resumed, as they were logged, and without anybody's secrets."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import mirrored
from shared.made_runs import make_run
from shared.mirrored import catch_up, children, log_steps, wait_until, without_accounts
from shared.wandb_files import inspect, logged_rows, read_wandb_files, wandb_files

from arcdist.analysis.record import read_run_folder
from arcdist.config import load_config
from arcdist.tracking import open_mirrors, wandb_process
from arcdist.tracking.wandb_process import steps_in

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
        paths = [str(Path(wandb_process.__file__).parents[2]), str(Path(mirrored.__file__).parents[1])]
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
        config = load_config(FLAGS).config
        mirrors = open_mirrors(folder, record.identity, config, best_metric="val/exact")
        catch_up(mirrors, record, 40)
        log_steps(mirrors, record, range(50, 121, 10))
        mirrors.close(0, seconds=60.0)
        assert list((root / "elsewhere").iterdir()) == []
    return record, folder, gone


def test_each_step_is_there_once_after_a_kill_and_a_resume(kept):
    record, folder, _ = kept
    assert len(wandb_files(folder)) == 2
    once = Counter(step["step"] for step in record.steps)
    assert Counter(row["_step"] for row in logged_rows(folder)) == once
    assert steps_in(folder / "wandb", record.identity.id) == set(once)
    assert steps_in(folder / "wandb", "another") == set()


def test_the_run_is_kept_as_it_was_logged(kept):
    record, folder, _ = kept
    read = read_wandb_files(folder)
    for name in ("identity", "config", "steps", "epochs", "best", "validations"):
        assert getattr(read, name) == getattr(record, name), name


def test_nothing_of_a_killed_run_hangs_around(kept):
    assert kept[2]


def test_no_secret_and_nothing_of_the_machine_is_written(kept):
    _, folder, _ = kept
    for path in folder.parent.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(secret.encode() in content for secret in (KEY, TOKEN)), path
    # A short name of a machine is in compressed bytes by chance.
    quoted = json.dumps(os.uname().nodename)
    assert not any(quoted in json.dumps(record) for file in wandb_files(folder) for record in inspect(file))
    texts = [path for path in (folder / "wandb").rglob("*") if path.suffix in (".json", ".log", ".txt", ".yaml")]
    assert texts
    assert not any(re.search(rf"\b{re.escape(os.uname().nodename)}\b", path.read_text()) for path in texts)
    written = {path.name for path in (folder / "wandb").rglob("*")}
    assert not written & {"requirements.txt", "wandb-metadata.json", "diff.patch", "output.log", "latest-run"}


def steps_after(kept, folder, change):
    """The steps that are found where the first log of the run is changed."""
    record, source, _ = kept
    path = wandb_files(source)[0]
    copy = folder / path.parent.name / path.name
    copy.parent.mkdir()
    copy.write_bytes(change(path.read_bytes()))
    return steps_in(folder, record.identity.id)


ALL = set(range(10, 71, 10))


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1))
def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(kept, tmp_path_factory, share):
    steps = steps_after(kept, tmp_path_factory.mktemp("cut"), lambda content: content[: int(share * len(content))])
    assert steps == set(range(10, 10 * len(steps) + 1, 10)) <= ALL


@pytest.mark.parametrize("length", range(16))
def test_a_run_killed_before_its_first_record_has_no_rows(kept, tmp_path, length):
    assert steps_after(kept, tmp_path, lambda content: content[:length]) == set()


def test_a_broken_part_ends_the_reading(kept, tmp_path):
    def with_broken_middle(content):
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]

    steps = steps_after(kept, tmp_path, with_broken_middle)
    assert 0 < len(steps) < len(ALL)
    assert steps == set(range(10, 10 * len(steps) + 1, 10))


def test_tables_have_a_column_for_the_picture_and_one_for_the_grids(kept):
    validation = kept[0].validations[0]
    columns, rows = wandb_process.shown_table(asdict(validation), lambda picture: picture.size)
    assert columns == ["id", "picture", "exact", "cell", "confidence", "grids"]
    assert [row[0] for row in rows] == [query.id for query in validation.shown]
    assert [row[2] for row in rows] == [validation.results[query.id].exact for query in validation.shown]
    columns, rows = wandb_process.query_table(asdict(validation))
    assert columns == ["id", "exact", "cell", "confidence"]
    assert [row[0] for row in rows] == list(validation.results)
