"""The watch itself, beside a store that is a real one. How programs end with it is in test_guard.py."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from torch.distributed import TCPStore

from arcdist.distributed import failure
from arcdist.distributed.failure import Failure, FailureWatch

FAILURE = Failure(rank=1, exit_code=4, error="OutOfMemoryError: full")
FAILED, ENDED = "arcdist/run/0/failed", "arcdist/run/0/ended"


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def launched(monkeypatch, store):
    """Make this process rank 1 of 2, beside the store of a launcher."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)


def watching_threads():
    return [thread for thread in threading.enumerate() if thread.name == "failure watch"]


def test_with_one_process_there_is_no_thread(monkeypatch, store):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    with FailureWatch() as watch:
        assert not watch.started
        assert watching_threads() == []
        assert watch.report(FAILURE)
    assert not store.check([FAILED])


@pytest.mark.usefixtures("launched")
def test_a_failure_is_left_in_the_store_for_the_others(store):
    with FailureWatch() as watch:
        assert watch.report(FAILURE)
    assert json.loads(store.get(FAILED)) == {"rank": 1, "exit_code": 4, "error": "OutOfMemoryError: full"}
    assert watching_threads() == []


@pytest.mark.usefixtures("launched")
def test_a_failure_before_the_watch_has_begun_is_reported_too(store):
    assert FailureWatch().report(FAILURE)
    assert store.check([FAILED])


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_good_end_stops_the_thread_and_is_known_of_rank_0(monkeypatch, store, rank):
    monkeypatch.setenv("RANK", str(rank))
    with FailureWatch():
        assert len(watching_threads()) == 1
        time.sleep(2 * failure.POLL_SECONDS)
    assert watching_threads() == []
    assert store.check([ENDED]) is (rank == 0)
    assert not store.check([FAILED])


@pytest.mark.usefixtures("launched")
def test_the_failure_of_an_earlier_attempt_is_not_this_ones(monkeypatch, store):
    store.set(FAILED, json.dumps({"rank": 0, "exit_code": 1, "error": "ValueError"}))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with FailureWatch() as watch:
        time.sleep(2 * failure.POLL_SECONDS)
        assert watch.report(FAILURE)
    assert json.loads(store.get("arcdist/run/1/failed"))["rank"] == 1


@pytest.mark.usefixtures("launched")
def test_a_store_that_rank_0_has_yet_to_open_is_waited_for(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    with FailureWatch() as watch:
        time.sleep(2 * failure.POLL_SECONDS)
        assert len(watching_threads()) == 1
        opened = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        assert watch.report(FAILURE)
    assert opened.check([FAILED])


@pytest.mark.usefixtures("launched")
def test_a_rank_that_reaches_nobody_tells_soon(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    monkeypatch.setenv("MASTER_PORT", "9")
    monkeypatch.setattr(failure, "REPORT_SECONDS", 0.2)
    start = time.monotonic()
    with FailureWatch() as watch:
        assert watch.report(FAILURE)
    assert time.monotonic() - start < 2.0


def test_leaving_writes_what_was_printed_and_waits_for_no_thread():
    program = """\
import threading, time
from arcdist.distributed.failure import leave
threading.Thread(target=time.sleep, args=(600,)).start()
print("said", end="")
leave(7)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (7, "said", "")


WAITING = """\
import logging, sys, time
from pathlib import Path
import torch
from arcdist.distributed import FailureWatch, rank

if rank() == 0:
    file = logging.FileHandler("training.log")
    file.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger("arcdist").addHandler(file)
with FailureWatch():
    Path(f"ready{rank()}").touch()
    time.sleep(WAIT)
"""


def wait_for_files(*paths):
    give_up = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.slow
def test_a_failure_ends_the_others_soon_and_stands_in_the_log(start_ranks, tmp_path, store):
    processes = start_ranks(WAITING.replace("WAIT", "600"), 2, store)
    wait_for_files(tmp_path / "ready0", tmp_path / "ready1")
    start = time.monotonic()
    store.set("arcdist//0/failed", json.dumps({"rank": 2, "exit_code": 4, "error": "OutOfMemoryError: full"}))
    assert [process.wait(10) for process in processes] == [4, 4]
    assert failure.OTHERS_SECONDS <= time.monotonic() - start < 4.0
    assert [process.communicate() for process in processes] == [("", "")] * 2
    assert (tmp_path / "training.log").read_text() == "ERROR Rank 2 failed: OutOfMemoryError: full\n"


@pytest.mark.slow
def test_the_end_of_the_launcher_amid_the_run_ends_the_ranks(start_ranks, tmp_path):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start_ranks(WAITING.replace("WAIT", "600"), 2, store)
    wait_for_files(tmp_path / "ready0", tmp_path / "ready1")
    time.sleep(1.0)
    del store
    assert [process.wait(10) for process in processes] == [6, 6]
    for rank, process in enumerate(processes):
        out, err = process.communicate()
        assert out == ""
        assert f"rank {rank} of 2 stops: the first machine's launcher, which answered at 127.0.0.1:" in err


@pytest.mark.slow
def test_the_end_of_rank_0_and_then_of_the_store_ends_nobody(start_ranks, tmp_path):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start_ranks(WAITING.replace("WAIT", "4 * rank()"), 2, store)
    assert processes[0].wait(30) == 0
    time.sleep(1.0)
    del store
    assert processes[1].wait(30) == 0


class Left(Exception):
    """What stands for the end of this process, with its exit code."""


@pytest.fixture
def at(monkeypatch):
    """Set the seconds that the module's clock shows; what ends the process raises `Left` at once."""
    shown = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: shown[0])
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)

    def leave(exit_code):
        raise Left(exit_code)

    monkeypatch.setattr(failure, "leave", leave)
    return lambda seconds: shown.__setitem__(0, 1000.0 + seconds)


@pytest.fixture
def touch(launched, at, store):
    """The watch of rank 1 of 2, which minds silence of 10 s: what it does at a second, like its thread."""
    watch = FailureWatch()
    watch.mind_silence(lambda: "training, step 3", 10.0)

    def keep_in_touch(second):
        at(second)
        watch._keep_in_touch(store, watch._life)

    return keep_in_touch


MINE, NEIGHBOURS = "arcdist/run/0/beat/1", "arcdist/run/0/beat/0"


def test_a_sign_of_life_is_left_every_two_seconds_and_says_what_this_rank_does(touch, store):
    assert failure.BEAT_SECONDS == 2.0
    signs = []
    for second in (0.0, 0.5, 1.9, 2.0, 3.5, 4.0):
        touch(second)
        signs.append(store.get(MINE).decode())
    assert signs == [f"{number} training, step 3" for number in (1, 1, 1, 2, 2, 3)]


def test_a_neighbour_that_falls_silent_is_missed_after_the_bound_and_not_before(touch, store, capsys):
    for second in (0, 2, 4):
        store.set(NEIGHBOURS, f"{second} saving, step 5, on node7 (pid 12)")
        touch(second)
    for second in (6, 8, 10, 12, 14):  # ten seconds after its last sign was heard, and no more
        touch(second)
    assert not store.check([FAILED])
    with pytest.raises(Left) as left:
        touch(16)
    assert left.value.args == (6,)
    told = capsys.readouterr().err
    assert told == (
        "rank 1 of 2 stops: Rank 0 of 2 has given no sign of life for 12 s. The last one: saving, step 5, on node7 "
        "(pid 12). The process was stopped, or its machine is lost: see there, and go on with --resume.\n"
    )
    known = json.loads(store.get(FAILED))
    assert (known["rank"], known["exit_code"]) == (0, 6)
    assert known["error"] in told


def test_one_that_does_the_same_for_ever_but_beats_is_not_missed(touch, store):
    for second in range(0, 100, 2):
        store.set(NEIGHBOURS, f"{second} waiting for data")
        touch(second)
    assert not store.check([FAILED])


def test_one_that_has_yet_to_begin_is_not_missed(touch, store):
    for second in range(0, 100, 2):
        touch(second)
    assert not store.check([FAILED])
    # Counted from its first sign.
    store.set(NEIGHBOURS, "1 starting")
    for second in range(100, 112, 2):
        touch(second)
    with pytest.raises(Left):
        touch(112)


def test_one_that_has_ended_well_is_not_missed(touch, store):
    store.set(NEIGHBOURS, "1 training")
    touch(0)
    store.set(NEIGHBOURS, "")
    for second in range(2, 100, 2):
        touch(second)
    assert not store.check([FAILED])


def test_a_rank_that_slept_itself_counts_anew(touch, store):
    store.set(NEIGHBOURS, "1 training")
    touch(0)
    touch(60)  # a whole machine that was suspended: the neighbour could not beat either
    for second in (62, 64, 66, 68, 70):
        touch(second)
    assert not store.check([FAILED])
    with pytest.raises(Left):
        touch(72)


def test_where_a_failure_is_known_already_nobody_else_is_blamed(touch, store, capsys):
    store.set(NEIGHBOURS, "1 training")
    touch(0)
    first = json.dumps({"rank": 1, "exit_code": 4, "error": "full"})
    store.set(FAILED, first)
    for second in range(2, 30, 2):
        touch(second)
    assert store.get(FAILED).decode() == first
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("launched")
def test_a_good_end_leaves_word_that_no_more_signs_will_come(store):
    with FailureWatch() as watch:
        watch.mind_silence(lambda: "training", 10.0)
        give_up = time.monotonic() + 10
        while not store.check([MINE]):
            assert time.monotonic() < give_up
            time.sleep(0.05)
    assert store.get(MINE) == b""


@pytest.mark.usefixtures("launched")
def test_a_rank_that_was_not_told_what_to_say_gives_no_sign(store):
    with FailureWatch():
        time.sleep(2 * failure.POLL_SECONDS)
    assert store.get(MINE) == b""  # but for its good end


BEATING = WAITING.replace(
    "with FailureWatch():", 'with FailureWatch() as watch:\n    watch.mind_silence(lambda: "at work", 5)'
)


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_missed_by_its_neighbour_and_a_busy_one_is_not(start_ranks, tmp_path, store):
    processes = start_ranks(BEATING.replace("WAIT", "600"), 3, store)
    wait_for_files(*(tmp_path / f"ready{rank}" for rank in range(3)))
    time.sleep(2 * failure.BEAT_SECONDS)
    assert [process.poll() for process in processes] == [None] * 3
    start = time.monotonic()
    processes[2].send_signal(signal.SIGSTOP)
    assert [process.wait(20) for process in processes[:2]] == [6, 6]
    # The bound, two beats in which it may fall, and what a failure takes.
    assert 5.0 < time.monotonic() - start < 5.0 + 2 * failure.BEAT_SECONDS + 4.0
    errors = [process.communicate()[1] for process in processes[:2]]
    assert errors[0] == ""
    assert errors[1].startswith("rank 1 of 3 stops: Rank 2 of 3 has given no sign of life for ")
    assert "The last one: at work. The process was stopped" in errors[1]
    assert "Rank 2 failed: Rank 2 of 3 has given no sign of life" in (tmp_path / "training.log").read_text()
