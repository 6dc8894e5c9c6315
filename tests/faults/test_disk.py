"""Disks that are full or broken while a run saves, and a save with a fault at each single operation in turn."""

import json
import re

import pytest

from arcdist.checkpoint.store import FILES, MANIFEST, checkpoints, flaw

pytestmark = pytest.mark.slow

CHECKPOINT = (*FILES, MANIFEST)
KILLED = 9
FAILED = 256  # the wait status of exit code 1
REASONS = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}
TOLD = (
    r"ERROR NOT SAVED: The checkpoint \S*/{place} could not be written \({reason}[^)]*\): "
    r"it needs 6\.2 MB, and [\d,.]+ [kMG]B"
)


def not_saved(run, place, reason):
    """Lines of the log about a checkpoint that could not be written."""
    pattern = TOLD.format(place=re.escape(place), reason=re.escape(reason))
    return [line for line in (run / "training.log").read_text().splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize(
    ("error", "operation"),
    [
        ("ENOSPC", "write .*step_00000006.partial/weights"),
        pytest.param("EIO", "fsync .*step_00000006.partial/state", marks=pytest.mark.exhaustive),
        pytest.param("EIO", "rename .*step_00000006.partial", marks=pytest.mark.exhaustive),
        pytest.param("ENOSPC", "mkdir .*step_00000006.partial", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_cannot_save_says_so_and_trains_on(start, assert_ended_as, error, operation):
    fault = {"do": error, "match": operation}
    attempt = start(fault=fault, launcher=False)
    assert attempt.wait() == 0, attempt.output
    (line,) = not_saved(start.run, "checkpoints/step_00000006", REASONS[error])
    advice = "Make room, or lower --output.keep_last" if error == "ENOSPC" else "See what is wrong there"
    assert line.endswith(f"{advice}. Training continues.")
    assert [folder.name for folder in checkpoints(start.run / "checkpoints")] == [
        f"step_{step:08d}" for step in (3, 9, 12, 15)
    ]
    assert [flaw(folder) for folder in checkpoints(start.run / "checkpoints")] == [None] * 4
    assert_ended_as(start.run, 1)


def test_a_disk_that_is_full_for_a_while_costs_no_number(start, assert_ended_as):
    everything = "^(write|mkdir|open) (?!training.log|heartbeats|.config.yaml|run.json|.*step_000000(03|12|15))"
    attempt = start(fault={"do": "ENOSPC", "match": everything, "at": 12, "times": 20}, launcher=False)
    assert attempt.wait() == 0, attempt.output
    log = (start.run / "training.log").read_text()
    assert "Traceback" not in attempt.output
    assert re.search(r"NOT WRITTEN: \S*/run/steps\.jsonl \(No space left on device\)\.", log)
    assert_ended_as(start.run, 1)


def test_a_run_folder_that_takes_nothing_at_the_start_is_reported_in_one_message(start):
    attempt = start(fault={"do": "ENOSPC", "match": "write .*run.json"}, launcher=False)
    assert attempt.wait() == 7
    assert re.search(r"train\.py: The run folder \S*/run cannot be written \(No space left on device: ", attempt.output)
    assert "Traceback" not in attempt.output


def test_a_run_whose_last_save_but_one_fails_ends_well(start, assert_ended_as):
    # The last save begins before the failure of the one before has been reported.
    fault = {"do": "ENOSPC", "match": "write .*step_00000014.partial/weights"}
    attempt = start("--output.save_every", "1", fault=fault, launcher=False)
    assert attempt.wait() == 0, attempt.output
    assert len(not_saved(start.run, "checkpoints/step_00000014", REASONS["ENOSPC"])) == 1
    assert_ended_as(start.run, 1)


def test_a_run_whose_last_save_fails_does_not_end_as_if_it_had_not(start):
    attempt = start(fault={"do": "ENOSPC", "match": "write .*step_00000015.partial/weights"}, launcher=False)
    assert attempt.wait() == 7
    assert "train.py: The checkpoint " in attempt.output
    assert len(not_saved(start.run, "checkpoints/step_00000015", REASONS["ENOSPC"])) == 1
    newest = checkpoints(start.run / "checkpoints")[-1]
    assert newest.name == "step_00000012"
    assert flaw(newest) is None


def test_all_processes_end_where_a_save_fails_and_that_is_asked_for(start, assert_ended_as):
    fault = {"do": "ENOSPC", "match": "write .*step_00000006.partial/weights"}
    attempt = start("--output.on_save_error", "stop", processes=2, fault=fault, launcher=False)
    attempt.wait_for_step(1)
    processes = attempt.processes()
    assert attempt.wait() == 7
    (line,) = not_saved(start.run, "checkpoints/step_00000006", REASONS["ENOSPC"])
    assert "Training continues" not in line
    assert attempt.left_of(processes) == []
    assert [folder.name for folder in checkpoints(start.run / "checkpoints")] == ["step_00000003"]
    resumed = start("--resume", processes=2, launcher=False)
    assert resumed.wait() == 0, resumed.output
    assert resumed.resumed_from == 3
    assert_ended_as(start.run, 2)


def test_errors_of_the_disk_on_another_process_harm_nothing(start, assert_ended_as):
    # From its second heartbeat on, nothing that rank 1 writes gets through.
    fault = {"do": "EIO", "match": "^(open|write|rename|mkdir)", "at": 5, "times": 10**6, "rank": 1}
    attempt = start(processes=2, fault=fault, launcher=False)
    assert attempt.wait() == 0, attempt.output
    assert_ended_as(start.run, 2)
    beat = json.loads((start.run / "heartbeats" / "rank_00001.json").read_text())
    assert beat["doing"] != "ended"
    assert "NOT SAVED" not in (start.run / "training.log").read_text()


@pytest.fixture(scope="session", params=[("kill", 1), ("kill", 2), ("lose power", 1)], ids=lambda p: f"{p[0]}-{p[1]}")
def killed(request, sweep):
    return sweep(*request.param), request.param[1]


@pytest.fixture(scope="session", params=[("ENOSPC", 1), ("EIO", 2)], ids=lambda p: p[0])
def failed(request, sweep):
    return sweep(*request.param), request.param


def each(operations):
    """Operations one after another; a file is written in several pieces."""
    return list(dict.fromkeys(operations))


def test_a_save_is_forced_to_disk_before_it_gets_its_name_and_before_the_old_one_goes(killed):
    outcomes, keep_last = killed
    partial, folder = f"checkpoints/.step_{3 * (keep_last + 1):08d}.partial", "checkpoints"
    operations = each(outcome["operation"] for outcome in outcomes)
    written = [f"{kind} {partial}/{file}" for file in CHECKPOINT for kind in ("open", "write", "fsync")]
    expected = [f"mkdir {partial}", *written, f"fsync {partial}", f"rename {partial}", f"fsync {folder}"]
    begin = operations.index(expected[0])
    saved, removed = operations[begin : begin + len(expected)], operations[begin + len(expected)]
    assert saved == expected
    assert removed == f"rename {folder}/step_00000003"
    assert operations.index("rename .best.partial") < operations.index("fsync .")
    unlinked = [operation for operation in operations if operation.startswith("unlink .best.replaced/")]
    assert len(unlinked) == len(CHECKPOINT)
    assert all(operations.index("fsync .") < operations.index(operation) for operation in unlinked)


def test_a_process_killed_at_any_operation_leaves_a_whole_checkpoint_and_a_whole_best(killed):
    outcomes, keep_last = killed
    new, old = 3 * (keep_last + 1), 3 * keep_last
    assert {outcome["status"] for outcome in outcomes} == {KILLED}
    named = [outcome["operation"] for outcome in outcomes].index(f"rename checkpoints/.step_{new:08d}.partial")
    for number, outcome in enumerate(outcomes):
        step, best = outcome["resumed"]
        # What has its name may lose it with the power until that is on the disk too.
        assert step in ((old,) if number <= named else (old, new) if number == named + 1 else (new,)), outcome
        assert best in (old, new), outcome


def test_a_save_after_one_that_was_cut_off_succeeds_and_nothing_is_left_of_that(killed):
    outcomes, keep_last = killed
    new = 3 * (keep_last + 1)
    kept = [f"step_{step:08d}" for step in range(6, new + 1, 3)]
    for outcome in outcomes:
        assert outcome["again"] == [new, new], outcome
        assert outcome["files"] == [".lock", "best", "checkpoints", *kept], outcome


def test_an_error_at_any_operation_is_reported_with_the_path_and_the_old_checkpoint_stays(failed):
    outcomes, (error, keep_last) = failed
    new, old = 3 * (keep_last + 1), 3 * keep_last
    reason = REASONS[error]
    for outcome in outcomes:
        assert outcome["status"] == FAILED, outcome
        name = outcome["operation"].split(" ")[1]
        assert reason in outcome["said"], outcome
        if "removed" in name or name == "checkpoints/step_00000003":
            assert "The old checkpoint " in outcome["said"]
            assert " could not be removed " in outcome["said"]
        else:
            place = "best" if "best" in name or name == "." else f"checkpoints/step_{new:08d}"
            assert f"/{place} could not be written ({reason}" in outcome["said"], outcome
        # In place without anything being put in order first.
        assert outcome["left"][0] in (old, new), outcome
        assert outcome["left"][1] in (old, new), outcome
        assert outcome["again"] == [new, new], outcome
