"""Signs of life: the file of a process, and what ranks leave for each other."""

import json
import os
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import TCPStore

from arcdist.distributed import heartbeat
from arcdist.distributed.heartbeat import BEAT_SECONDS, Heartbeat, SignsOfLife
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
def test_it_continues_while_the_process_is_stuck_and_says_since_when(tmp_path):
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


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "heartbeats").write_text("")
    with (
        pytest.raises(PlatformError, match=r"rank_00000\.json cannot be written: .*--output_dir"),
        Heartbeat(tmp_path, 0).running(),
    ):
        pass


@settings(deadline=None)  # Each example starts a thread and writes files.
@given(rank=st.integers(0, 99999), what=st.text(), step=st.integers(0))
def test_any_activity_comes_back_as_it_was_said(tmp_path_factory, rank, what, step):
    beat = Heartbeat(tmp_path_factory.mktemp("run"), rank)
    beat.doing(what, step)
    with beat.running():
        assert (read(beat)["rank"], read(beat)["doing"], read(beat)["step"]) == (rank, what, step)


def test_life_is_described_in_words(tmp_path, monkeypatch):
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
    assert list(tmp_path.iterdir()) == []  # it needs no file


@pytest.mark.usefixtures("quick")
def test_an_observer_is_given_what_is_being_done_and_for_how_long(tmp_path):
    beat = Heartbeat(tmp_path, 0)
    observed = []
    beat.observer = lambda doing, seconds: observed.append((doing, seconds))
    with beat.running():
        beat.doing("loading weights")
        wait_until(lambda: len({seconds for doing, seconds in observed if doing == "loading weights"}) >= 2)
        beat.doing("validating")
        wait_until(lambda: observed[-1][0] == "validating")
    loading = [seconds for doing, seconds in observed if doing == "loading weights"]
    assert loading == sorted(loading)
    assert 0.0 <= loading[0] < loading[-1] < 10.0


@pytest.mark.usefixtures("quick")
def test_an_observer_whose_console_is_gone_ends_nothing(tmp_path):
    beat = Heartbeat(tmp_path, 0)
    observed = []

    def fail(doing, seconds):
        observed.append(doing)
        raise BrokenPipeError

    beat.observer = fail
    with beat.running():
        wait_until(lambda: len(observed) >= 3)
        beat.doing("saving")
        wait_until(lambda: read(beat)["doing"] == "saving")


@pytest.fixture
def exchange(monkeypatch):
    """The store, and what rank 1 of 2, which accepts 10 s of silence, does with it at a second."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    signs = SignsOfLife(lambda: "training, step 3", 10.0)

    def at(second):
        monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + second)
        return signs.exchange(store)

    return store, at


MINE, THEIRS = "arcdist/run/0/beat/1", "arcdist/run/0/beat/0"


def test_a_sign_of_life_is_left_every_two_seconds_and_says_what_this_rank_does(exchange):
    store, at = exchange
    assert BEAT_SECONDS == 2.0
    signs = []
    for second in (0.0, 0.5, 1.9, 2.0, 3.5, 4.0):
        assert at(second) is None
        signs.append(store.get(MINE).decode())
    assert signs == [f"{number} training, step 3" for number in (1, 1, 1, 2, 2, 3)]


def test_a_neighbour_that_falls_silent_is_missed_after_the_bound_and_not_before(exchange):
    store, at = exchange
    for second in (0, 2, 4):
        store.set(THEIRS, f"{second} saving, step 5, on node7 (pid 12)")
        assert at(second) is None
    # Ten seconds after its last sign was seen, and no sooner.
    assert [at(second) for second in (6, 8, 10, 12, 14)] == [None] * 5
    assert at(16) == (
        "Rank 0 of 2 has given no sign of life for 12 s. The last one: saving, step 5, on node7 (pid 12). The process "
        "was stopped, or its machine is lost: look there, and continue with --resume."
    )


def test_one_that_does_the_same_for_ever_but_beats_is_not_missed(exchange):
    store, at = exchange
    for second in range(0, 100, 2):
        store.set(THEIRS, f"{second} waiting for data")
        assert at(second) is None


def test_one_that_has_yet_to_begin_is_not_missed(exchange):
    store, at = exchange
    assert not any(at(second) for second in range(0, 100, 2))
    # Counted from its first sign.
    store.set(THEIRS, "1 starting")
    assert not any(at(second) for second in range(100, 112, 2))
    assert at(112).startswith("Rank 0 of 2 has given no sign of life for 12 s. The last one: starting.")


def test_one_that_has_ended_well_is_not_missed(exchange):
    store, at = exchange
    store.set(THEIRS, "1 training")
    assert at(0) is None
    store.set(THEIRS, "")
    assert not any(at(second) for second in range(2, 100, 2))


def test_a_rank_that_was_suspended_itself_counts_again(exchange):
    store, at = exchange
    store.set(THEIRS, "1 training")
    assert at(0) is None
    # A whole machine that was suspended: the neighbour could not beat either.
    assert not any(at(second) for second in (60, 62, 64, 66, 68, 70))
    assert at(72) is not None
