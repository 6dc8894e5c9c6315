"""Disks that are full or broken while a run saves."""

import json
import re

import pytest

from arcdist.checkpoint.store import checkpoints, flaw

pytestmark = pytest.mark.slow

REASONS = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}
TOLD = (
    r"ERROR NOT SAVED: The checkpoint \S*/{place} could not be written \({reason}[^)]*\): "
    r"it needs 6\.2 MB, and [\d,.]+ [kMG]B"
)


def told(run, place, reason):
    """Lines of the log that tell of a checkpoint that could not be written."""
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
    (line,) = told(start.run, "checkpoints/step_00000006", REASONS[error])
    mend = "Make room, or lower --output.keep_last" if error == "ENOSPC" else "See what is wrong there"
    assert line.endswith(f"{mend}. Training continues.")
    assert [folder.name for folder in checkpoints(start.run / "checkpoints")] == [
        f"step_{step:08d}" for step in (3, 9, 12, 15)
    ]
    assert [flaw(folder) for folder in checkpoints(start.run / "checkpoints")] == [None] * 4
    assert_ended_as(start.run, 1)


def test_a_disk_that_is_full_for_a_while_costs_no_number(start, assert_ended_as):
    everything = "^(write|mkdir|open) (?!training.log|heartbeats|config.yaml|run.json|.*step_000000(03|12|15))"
    attempt = start(fault={"do": "ENOSPC", "match": everything, "at": 12, "times": 20}, launcher=False)
    assert attempt.wait() == 0, attempt.output
    told = (start.run / "training.log").read_text()
    assert "Traceback" not in attempt.output
    assert re.search(r"NOT WRITTEN: \S*/run/steps\.jsonl \(No space left on device\)\.", told)
    assert_ended_as(start.run, 1)


def test_a_run_folder_that_takes_nothing_at_the_start_is_told_in_one_message(start):
    attempt = start(fault={"do": "ENOSPC", "match": "write .*run.json"}, launcher=False)
    assert attempt.wait() == 7
    assert re.search(r"train\.py: The run folder \S*/run cannot be written \(No space left on device: ", attempt.output)
    assert "Traceback" not in attempt.output


def test_a_run_whose_last_save_but_one_fails_ends_well(start, assert_ended_as):
    # The last save begins before the failure of the one before has been told.
    fault = {"do": "ENOSPC", "match": "write .*step_00000014.partial/weights"}
    attempt = start("--output.save_every", "1", fault=fault, launcher=False)
    assert attempt.wait() == 0, attempt.output
    assert len(told(start.run, "checkpoints/step_00000014", REASONS["ENOSPC"])) == 1
    assert_ended_as(start.run, 1)


def test_a_run_whose_last_save_fails_does_not_end_as_if_it_had_not(start):
    attempt = start(fault={"do": "ENOSPC", "match": "write .*step_00000015.partial/weights"}, launcher=False)
    assert attempt.wait() == 7
    assert "train.py: The checkpoint " in attempt.output
    assert len(told(start.run, "checkpoints/step_00000015", REASONS["ENOSPC"])) == 1
    newest = checkpoints(start.run / "checkpoints")[-1]
    assert newest.name == "step_00000012"
    assert flaw(newest) is None


def test_all_processes_end_where_a_save_fails_and_that_is_asked_for(start, assert_ended_as):
    fault = {"do": "ENOSPC", "match": "write .*step_00000006.partial/weights"}
    attempt = start("--output.on_save_error", "stop", processes=2, fault=fault, launcher=False)
    attempt.wait_for_step(1)
    processes = attempt.processes()
    assert attempt.wait() == 7
    (line,) = told(start.run, "checkpoints/step_00000006", REASONS["ENOSPC"])
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
