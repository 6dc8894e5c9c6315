import json
import os
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.distributed import heartbeat
from arcdist.distributed.heartbeat import Heartbeat
from arcdist.errors import PlatformError


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(heartbeat, "WRITE_SECONDS", 0.02)


def read(beat):
    return json.loads(beat.path.read_text())


def wait_until(holds):
    give_up = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_the_file_is_there_from_the_first_moment_with_who_and_what(tmp_path):
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    beat = Heartbeat(tmp_path, 7)
    assert list(tmp_path.iterdir()) == []
    with beat.running():
        assert beat.path == tmp_path / "heartbeats" / "rank_00007.json"
        record = read(beat)
    since, written = (datetime.fromisoformat(record.pop(name)) for name in ("since", "written"))
    assert record == {"rank": 7, "host": socket.gethostname(), "pid": os.getpid(), "step": None, "doing": "starting"}
    assert before <= since <= written <= datetime.now(UTC)
    assert list(beat.path.parent.iterdir()) == [beat.path]


@pytest.mark.usefixtures("quick")
def test_it_goes_on_while_the_process_is_stuck_and_says_since_when(tmp_path):
    beat = Heartbeat(tmp_path, 0)
    with beat.running():
        beat.doing("Qwen forward", step=12)
        wait_until(lambda: read(beat)["doing"] == "Qwen forward")
        first = read(beat)
        wait_until(lambda: read(beat)["written"] > first["written"])
        later = read(beat)
        assert (later["step"], later["since"]) == (12, first["since"])

        beat.doing("all-reduce")
        wait_until(lambda: read(beat)["doing"] == "all-reduce")
        assert read(beat)["step"] == 12
        assert read(beat)["since"] > first["since"]


def test_the_last_beat_says_ended_or_what_an_error_interrupted(tmp_path):
    beat = Heartbeat(tmp_path, 0)
    with beat.running():
        beat.doing("saving", step=3)
    assert (read(beat)["doing"], read(beat)["step"]) == ("ended", 3)

    def failing():
        with beat.running():
            beat.doing("loading", step=4)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        failing()
    assert (read(beat)["doing"], read(beat)["step"]) == ("loading", 4)


@pytest.mark.usefixtures("quick")
def test_a_disk_that_fails_later_ends_nothing(tmp_path):
    beat = Heartbeat(tmp_path, 0)
    with beat.running():
        beat.path.unlink()
        beat.path.parent.rename(tmp_path / "elsewhere")
        time.sleep(0.1)
        (tmp_path / "elsewhere").rename(beat.path.parent)
        wait_until(beat.path.exists)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "heartbeats").write_text("")
    with (
        pytest.raises(PlatformError, match=r"rank_00000\.json cannot be written: .*--output_dir"),
        Heartbeat(tmp_path, 0).running(),
    ):
        pass


@given(rank=st.integers(0, 99999), what=st.text(), step=st.integers(0))
def test_any_activity_comes_back_as_it_was_said(tmp_path_factory, rank, what, step):
    beat = Heartbeat(tmp_path_factory.mktemp("run"), rank)
    beat.doing(what, step)
    beat.path.parent.mkdir()
    beat._write()
    assert (read(beat)["rank"], read(beat)["doing"], read(beat)["step"]) == (rank, what, step)


def test_life_is_told_in_words(tmp_path, monkeypatch):
    now = datetime(2025, 3, 1, 12, 30, 5, 999_000, tzinfo=UTC)
    monkeypatch.setattr(heartbeat, "_now", lambda: now)
    beat = Heartbeat(tmp_path, 3)
    where = f"on {socket.gethostname()} (pid {os.getpid()})"
    assert beat.life() == f"starting, before the first step, since 2025-03-01T12:30:05+00:00, {where}"
    beat.doing("training", step=7)
    assert beat.life() == f"training, step 7, since 2025-03-01T12:30:05+00:00, {where}"
    now += timedelta(minutes=2)
    assert beat.life() == f"training, step 7, since 2025-03-01T12:30:05+00:00, {where}"
    beat.doing("saving")
    assert beat.life() == f"saving, step 7, since 2025-03-01T12:32:05+00:00, {where}"
    assert list(tmp_path.iterdir()) == []  # it is told without a file


@pytest.mark.usefixtures("quick")
def test_an_observer_is_told_what_is_being_done_and_for_how_long(tmp_path):
    beat = Heartbeat(tmp_path, 0)
    told = []
    beat.observer = lambda doing, seconds: told.append((doing, seconds))
    with beat.running():
        beat.doing("loading weights")
        wait_until(lambda: len({seconds for doing, seconds in told if doing == "loading weights"}) >= 2)
        beat.doing("validating")
        wait_until(lambda: told[-1][0] == "validating")
    loading = [seconds for doing, seconds in told if doing == "loading weights"]
    assert loading == sorted(loading)
    assert 0.0 <= loading[0] < loading[-1] < 10.0


@pytest.mark.usefixtures("quick")
def test_an_observer_whose_console_is_gone_ends_nothing(tmp_path):
    beat = Heartbeat(tmp_path, 0)
    told = []

    def fail(doing, seconds):
        told.append(doing)
        raise BrokenPipeError

    beat.observer = fail
    with beat.running():
        wait_until(lambda: len(told) >= 3)
        beat.doing("saving")
        wait_until(lambda: read(beat)["doing"] == "saving")
