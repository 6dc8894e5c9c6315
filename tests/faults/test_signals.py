"""Machines that are taken away, and processes that stop."""

import json
import re
import signal
import time

import pytest

pytestmark = pytest.mark.slow

SECONDS = 30.0
"""What a batch system gives a run at least."""


def assert_ended_at_a_step(attempt, processes, signalled):
    """All processes are gone in time, and the log's last word is the step that was saved; that step."""
    assert attempt.left_of(processes, SECONDS - (time.monotonic() - signalled)) == []
    log = (attempt.run / "training.log").read_text()
    found = re.search(
        r"WARNING Asked to make room: step (\d+) is saved in \S+/step_0*\1\. Continue with --resume\.", log
    )
    assert found, attempt.output
    assert attempt.last_step() == int(found[1])
    state = json.loads((attempt.run / "checkpoints" / f"step_{int(found[1]):08d}" / "state.json").read_text())
    assert state["step"] == int(found[1])
    return int(found[1])


def assert_goes_on(start, assert_ended_as, step, processes):
    resumed = start("--resume", processes=processes, launcher=False)
    assert resumed.wait() == 0, resumed.output
    assert resumed.resumed_from == step
    assert_ended_as(start.run, processes)


@pytest.mark.parametrize(
    ("number", "flags", "code"),
    [(signal.SIGTERM, (), 143), (signal.SIGUSR1, ("--output.preempted_exit_code", "0"), 0), (signal.SIGHUP, (), 143)],
    ids=["SIGTERM", "SIGUSR1", "SIGHUP"],
)
def test_a_process_that_has_to_make_room_saves_its_step_and_says_so_in_its_exit_code(
    start, assert_ended_as, number, flags, code
):
    attempt = start(*flags, launcher=False)
    attempt.wait_for_step(4)
    processes, signalled = attempt.processes(), time.monotonic()
    attempt.launcher.send_signal(number)
    assert attempt.wait() == code
    assert_goes_on(start, assert_ended_as, assert_ended_at_a_step(attempt, processes, signalled), 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_launcher_that_has_to_make_room_leaves_a_checkpoint_and_no_process(start, assert_ended_as, processes):
    attempt = start(processes=processes)
    attempt.wait_for_step(4)
    there, signalled = attempt.processes(), time.monotonic()
    attempt.launcher.terminate()
    step = assert_ended_at_a_step(attempt, there, signalled)
    assert attempt.wait() in (1, -signal.SIGTERM)
    assert_goes_on(start, assert_ended_as, step, processes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_that_has_to_make_room_takes_the_others_along(start, assert_ended_as, number, rank):
    attempt = start("--output.preempted_exit_code", "0", processes=2)
    attempt.wait_for_step(4)
    there, signalled = attempt.processes(), time.monotonic()
    attempt.rank(rank).send_signal(number)
    assert attempt.wait() == 0
    assert_goes_on(start, assert_ended_as, assert_ended_at_a_step(attempt, there, signalled), 2)


def assert_silence_is_reported(start, rank, launcher):
    """The other rank says, in time, where and when the stopped one gave its last sign of life."""
    attempt = start("--distributed.silence", "5", "--epochs", "100", processes=2, launcher=launcher)
    attempt.wait_for_step(4)
    time.sleep(3.0)  # A sign of life is left every two seconds.
    there = attempt.processes()
    stopped = attempt.rank(rank)
    stopped.suspend()
    since = time.monotonic()
    attempt.wait_until(lambda: "has given no sign of life" in attempt.output)
    # Signs of life are looked for every two seconds, too.
    assert 3.0 < time.monotonic() - since < 5.0 + 2 * 2.0 + 3.0
    message = (
        rf"Rank {rank} of 2 has given no sign of life for \d+ s\. The last one: \w[\w ]+, step \d+, since \S+, on "
    )
    assert re.search(rf"rank {1 - rank} of 2 stops: {message}\S+ \(pid {stopped.pid}\)\.", attempt.output)
    return attempt, there


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_is_named_by_the_other_one(start, rank):
    attempt, there = assert_silence_is_reported(start, rank, launcher=False)
    attempt.kill()
    assert attempt.left_of(there) == []
    if rank == 1:  # The log is rank 0's.
        assert "Rank 1 of 2 has given no sign of life" in (start.run / "training.log").read_text()


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [0, 1])
def test_the_launcher_ends_all_where_a_rank_stands_still(start, rank):
    attempt, there = assert_silence_is_reported(start, rank, launcher=True)
    assert attempt.wait() == 1
    assert attempt.left_of(there) == []
    assert re.search(r"exitcode *: 6 ", attempt.output)
