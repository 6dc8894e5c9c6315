"""W&B's server that works, is out of reach or refuses the key: training notices nothing, and no row is lost."""

import json
import logging
import subprocess
import sys
import time

import psutil
import pytest
from shared.made_runs import make_run
from shared.mirrored import catch_up, children, log_steps, wait_until, without_accounts
from shared.wandb_server import KEY, wandb_server

from arcdist.analysis.record import read_run_folder
from arcdist.config import load_config
from arcdist.errors import ConfigError, DataError, PlatformError
from arcdist.tracking import wandb_run
from arcdist.tracking import wandb_run as mode_module
from arcdist.tracking.mirror import open_mirrors
from arcdist.tracking.wandb_reader import read_wandb_folder, read_wandb_run
from arcdist.tracking.wandb_run import wandb_mode

pytestmark = pytest.mark.slow

ALL = range(10, 81, 10)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run without validations, whose tables a server would have to take."""
    folder = make_run(tmp_path_factory.mktemp("made") / "source", epochs=2)
    for path in (folder / "validation").iterdir():
        path.unlink()
    return read_run_folder(folder)


@pytest.fixture
def server(monkeypatch, tmp_path):
    without_accounts(monkeypatch, tmp_path / "home")
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def opened(folder, record, *, close_seconds=40.0, flags=()):
    config = load_config(["--recipe", "quickstart", *flags]).config
    return open_mirrors(folder, record.identity, config, best_metric="val/exact", close_seconds=close_seconds)


def closed(mirrors):
    """The seconds that the end of a run took; nothing is left of W&B then."""
    start = time.monotonic()
    mirrors.close(0)
    seconds = time.monotonic() - start
    psutil.wait_procs(children(), timeout=5)
    assert children() == []
    return seconds


def test_a_run_goes_on_in_w_and_b_where_it_was_and_can_be_read_from_there(server, folder, record, caplog):
    caplog.set_level(logging.INFO, "arcdist")
    first = opened(folder, record)
    log_steps(first, record, range(10, 51, 10))
    closed(first)
    assert [row["_step"] for row in server.rows.values()] == [10, 20, 30, 40, 50]
    # The last row did not arrive, and training passes over steps 50 and 60 once more.
    del server.rows[4]
    second = opened(folder, record)
    catch_up(second, record, 60)
    log_steps(second, record, range(50, 81, 10))
    closed(second)
    assert [row["_step"] for row in server.rows.values()] == list(ALL)
    name = f"me/arcdist/{record.identity.id}"
    assert f"The run is kept in W&B: {server.url}/me/arcdist/runs/{record.identity.id}" in caplog.text
    assert "WARNING" not in caplog.text
    read = read_wandb_run(name)
    for ours, theirs in ((read.steps, record.steps), (read.epochs, record.epochs), ([read.best], [record.best])):
        assert [json.dumps(one, sort_keys=True) for one in ours] == [json.dumps(one, sort_keys=True) for one in theirs]
    assert (read.identity, read.place) == (record.identity, name)
    assert read.config["optim.qwen_lr"] == record.config["optim.qwen_lr"]


@pytest.mark.parametrize("mode", ["refuses", "hangs"])
def test_where_there_is_no_way_into_w_and_b_the_run_is_kept_offline(server, folder, record, mode, monkeypatch, caplog):
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 1.0)
    server.mode = mode
    mirrors = opened(folder, record)
    log_steps(mirrors, record, ALL)
    assert closed(mirrors) < 40
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert warning.startswith("W&B failed (CommError: Failed to get resume status")
    assert warning.endswith(f"then `wandb sync {folder}/wandb/*run-*-{record.identity.id}` uploads it.")
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert read_wandb_folder(folder / "wandb").steps == record.steps
    if mode == "refuses":
        server.mode = "works"
        told = warning.split("`")[-2].removeprefix("wandb")
        subprocess.run(
            f"{sys.executable} -m wandb {told}", shell=True, cwd=folder, timeout=60, check=True, capture_output=True
        )
        assert [row["_step"] for row in server.rows.values()] == list(ALL)


@pytest.mark.parametrize("mode", ["fails", "hangs"])
def test_rows_that_do_not_arrive_are_in_the_folder_at_the_end(server, folder, record, mode, monkeypatch, caplog):
    monkeypatch.setattr(wandb_run, "FINISH_SECONDS", 1.0 if mode == "fails" else 60.0)
    mirrors = opened(folder, record, close_seconds=5.0)
    log_steps(mirrors, record, ALL)
    wait_until(lambda: server.config != {})
    server.mode = mode
    assert closed(mirrors) < 9
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert warning.startswith("W&B lacks what is left of this run (")
    assert f"`wandb sync {folder}/wandb/*run-*-{record.identity.id}` uploads it" in warning
    assert read_wandb_folder(folder / "wandb").steps == record.steps


def test_a_key_that_is_revoked_is_told_and_loses_no_row(server, folder, record, caplog):
    mirrors = opened(folder, record)
    log_steps(mirrors, record, range(10, 71, 10))
    wait_until(lambda: server.config != {})
    server.mode = "refuses"
    log_steps(mirrors, record, [80])
    closed(mirrors)
    assert "it has stopped sending; filestream: fatal error" in caplog.text
    assert f"`wandb sync {folder}/wandb/*run-*-{record.identity.id}` uploads it" in caplog.text
    assert read_wandb_folder(folder / "wandb").steps == record.steps


def test_what_w_and_b_s_process_loses_is_taken_from_the_run_folder(folder, record, monkeypatch, tmp_path, caplog):
    without_accounts(monkeypatch, tmp_path / "home")
    for name in ("steps.jsonl", "metrics.json"):
        (folder / name).symlink_to(f"{record.place}/{name}")
    mirrors = opened(folder, record)
    log_steps(mirrors, record, range(10, 51, 10))
    wait_until(lambda: any((folder / "wandb").glob("*/logs/debug-internal.log")))
    for child in children():
        child.kill()
    log_steps(mirrors, record, range(60, 81, 10))
    closed(mirrors)
    assert caplog.text.count("W&B failed (its process died") == 1
    read = read_wandb_folder(folder / "wandb")
    assert (read.steps, read.epochs) == (record.steps, record.epochs)


def test_a_folder_that_cannot_be_written_is_one_warning(folder, record, monkeypatch, tmp_path, caplog):
    without_accounts(monkeypatch, tmp_path / "home")
    (folder / "wandb").write_text("")
    mirrors = opened(folder, record)
    log_steps(mirrors, record, ALL)
    closed(mirrors)
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert warning.startswith("W&B lacks what is left of this run (FileExistsError: ")


def test_handing_over_takes_no_time_whatever_w_and_b_does(server, folder, record):
    server.mode = "hangs"
    mirrors = opened(folder, record, close_seconds=0.2)
    start = time.monotonic()
    for _ in range(100):
        log_steps(mirrors, record, ALL)
    assert (time.monotonic() - start) / 1000 < 0.002
    assert closed(mirrors) < 5


def test_what_cannot_be_read_from_w_and_b_is_one_error(server):
    with pytest.raises(DataError, match=r"me/arcdist/nothing cannot be read from W&B \(.*Could not find run"):
        read_wandb_run("me/arcdist/nothing")
    server.mode = "refuses"
    with pytest.raises(DataError, match=r"cannot be read from W&B \(.*or the key \(`wandb login`\)"):
        read_wandb_run("me/arcdist/nothing")


def test_the_configuration_decides_before_wandb_s_own_variable(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = load_config(["--recipe", "quickstart"]).config
    offline = load_config(["--recipe", "quickstart", "--tracking.wandb", "offline"]).config
    assert wandb_mode(config) is None
    for named, meant in (("online", "online"), ("dryrun", "offline"), ("disabled", "disabled"), ("", None)):
        monkeypatch.setenv("WANDB_MODE", named)
        assert wandb_mode(config) == meant
        assert wandb_mode(offline) == "offline"
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(ConfigError, match="WANDB_MODE is shared: choose online, offline or disabled"):
        wandb_mode(config)


def test_without_wandb_a_run_goes_without_it_unless_it_is_asked_for_by_name(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "arcdist")
    monkeypatch.setattr(mode_module, "find_spec", lambda name: None)
    assert wandb_mode(load_config(["--recipe", "quickstart"]).config) == "disabled"
    assert "not installed: pip install 'arcdist[wandb]'." in caplog.text
    for wanted in ("offline", "online"):
        with pytest.raises(PlatformError, match=rf"tracking\.wandb is {wanted}, but wandb is not installed: pip"):
            wandb_mode(load_config(["--recipe", "quickstart", "--tracking.wandb", wanted]).config)
    assert wandb_mode(load_config(["--recipe", "quickstart", "--tracking.wandb", "disabled"]).config) == "disabled"
