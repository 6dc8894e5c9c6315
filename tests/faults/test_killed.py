"""Runs whose processes are killed at some moment, and resumed: the end is that of the uninterrupted run."""

import random
import signal
import time

import pytest

from arcdist.checkpoint.store import FILES, MANIFEST

pytestmark = pytest.mark.slow

SAVE_EVERY = 3
CHECKPOINT = (*FILES, MANIFEST)


def moment_of(seed):
    """A step of the run, and seconds of about a step after it."""
    numbers = random.Random(seed)
    return numbers.randint(1, 12), numbers.uniform(0.0, 0.2)


def kill_at(attempt, seed, who):
    """Kill a rank or all processes at a random moment; what is left of the others ends by itself."""
    step, seconds = moment_of(seed)
    attempt.wait_for_step(step)
    time.sleep(seconds)
    processes = attempt.processes()
    if who == "all":
        attempt.kill()
        return
    attempt.rank(who).kill()
    assert attempt.wait() == 1
    assert attempt.left_of(processes) == []


def assert_resumes(start, attempt, assert_ended_as, processes, *flags):
    """The run continues from at most one interval before, and ends as if nothing had happened."""
    killed_at = attempt.last_step()
    # A checkpoint is written while training continues: one under way when the process is killed is lost too.
    under_way = any(start.run.glob("checkpoints/.step_*.partial"))
    resumed = start("--resume", "auto", *flags, processes=processes, launcher=False)
    assert resumed.wait() == 0, resumed.output
    lost = killed_at - resumed.resumed_from
    assert 0 <= lost <= SAVE_EVERY * (1 + under_way), resumed.output
    assert_ended_as(start.run, processes)


def assert_survives(start, assert_ended_as, *, who, seed, processes, keep_last):
    flags = ("--output.keep_last", str(keep_last))
    attempt = start(*flags, processes=processes, launcher=processes > 1)
    kill_at(attempt, seed, who)
    assert_resumes(start, attempt, assert_ended_as, processes, *flags)


@pytest.mark.parametrize(("who", "seed", "processes", "keep_last"), [("all", 1, 1, 1), (0, 2, 2, 1), (1, 3, 2, 5)])
def test_a_run_killed_at_a_random_moment_ends_as_if_nothing_had_happened(
    start, assert_ended_as, who, seed, processes, keep_last
):
    assert_survives(start, assert_ended_as, who=who, seed=seed, processes=processes, keep_last=keep_last)


@pytest.mark.exhaustive
@pytest.mark.parametrize("keep_last", [5, 1])
@pytest.mark.parametrize("who", ["one", "all"])
@pytest.mark.parametrize("seed", range(100, 120))
def test_so_does_one_killed_at_any_of_twenty_moments(start, assert_ended_as, who, seed, keep_last):
    rank = seed % 2 if who == "one" else "all"
    assert_survives(start, assert_ended_as, who=rank, seed=seed, processes=2, keep_last=keep_last)


def operations(keep_last):
    """Every operation of the save of step 6, with all that it removes, as regular expressions."""
    partial, folder = r"checkpoints/\.step_00000006\.partial", "checkpoints"
    written = [f"{kind} {partial}/{file}" for file in CHECKPOINT for kind in ("open", "write", "fsync")]
    saved = [f"mkdir {partial}", *written, f"fsync {partial}$", f"rename {partial}", f"fsync {folder}$"]
    removed = r"checkpoints/\.step_00000003\.removed"
    pruned = [
        f"rename {folder}/step_00000003",
        *(f"unlink {removed}/{file}" for file in CHECKPOINT),
        f"rmdir {removed}",
    ]
    return [*saved, *(pruned if keep_last == 1 else [])]


def assert_survives_operation(start, assert_ended_as, operation, keep_last):
    # The folder itself is forced to disk in each save.
    at = 2 if operation == "fsync checkpoints$" else 1
    flags = ("--output.keep_last", str(keep_last))
    attempt = start(*flags, fault={"do": "kill", "match": operation, "at": at}, launcher=False)
    assert attempt.wait() == -signal.SIGKILL
    assert_resumes(start, attempt, assert_ended_as, 1, *flags)


@pytest.mark.parametrize(
    "operation", [r"write .*step_00000006\.partial/moments", "fsync .*/manifest", r"rename .*/\.step_00000006\.partial"]
)
def test_so_does_one_killed_at_an_operation_of_a_save(start, assert_ended_as, operation):
    assert_survives_operation(start, assert_ended_as, operation, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("operation", "keep_last"), [(operation, keep) for keep in (1, 5) for operation in operations(keep)]
)
def test_so_does_one_killed_at_any_operation_of_a_save(start, assert_ended_as, operation, keep_last):
    assert_survives_operation(start, assert_ended_as, operation, keep_last)


def test_a_run_killed_while_it_goes_back_has_no_checkpoint_later_than_its_numbers(start, saved):
    fault = {"do": "kill", "match": "rename checkpoints/step_00000009"}
    attempt = start("--resume", str(saved / "checkpoints" / "step_00000003"), fault=fault, launcher=False)
    assert attempt.wait() == -signal.SIGKILL
    assert (saved / "checkpoints" / "step_00000009").exists()
    assert attempt.last_step() >= 9
