"""The first line of a report, how far the run came and what it cost, by hand."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from arcdist.report.log_lines import LogEntry
from arcdist.report.summary import costs, standing, summary

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
QUERIES = {f"{index}:test:0": 1.0 if index < 13 else 0.5 for index in range(325)}
STEPS = (
    {"step": 288, "loss": 2.0, "pairs_per_s": 90.0, "time/elapsed_s": 100.0, "time/device_hours": 100 / 3600},
    {"step": 576, "loss": 1.0, "pairs_per_s": 110.0, "time/elapsed_s": 202.0, "time/device_hours": 202 / 3600},
)


def epochs(*exact):
    return tuple(
        {"epoch": epoch, "val/exact": share, "floor/copy_exact": 0.0, "pairs_per_s": 100.0 + epoch}
        for epoch, share in enumerate(exact)
    )


@pytest.fixture
def whole(make_record, make_validation):
    """A run of 18 epochs that ends as its best."""
    return make_record(
        config={"train.epochs": 18},
        steps=STEPS,
        epochs=epochs(*[0.01] * 17, 13 / 325),
        validations=(make_validation(17, QUERIES),),
    )


def test_the_outcome_in_one_sentence(whole):
    assert summary(whole) == (
        "13 of 325 validation queries exact (4.00 %) after 18 epochs; copying the input solves 0.00 %; "
        "202 s on one CPU."
    )


def test_a_better_epoch_before_the_last_is_named(make_record):
    record = make_record(epochs=epochs(0.1, 0.3, 0.3, 0.2), device="NVIDIA H200", processes=4)
    assert summary(record) == (
        "20.00 % of the validation queries exact after 4 epochs (at best 30.00 %, after 2 epochs); "
        "copying the input solves 0.00 %; on 4 × NVIDIA H200."
    )


def test_a_run_without_validation_tells_its_loss(make_record):
    record = make_record(steps=STEPS, epochs=({"epoch": 0},), config={"train.epochs": 18}, processes=2)
    assert summary(record) == (
        "No validation yet: 1 epoch ended, loss 2.000 at first and 1.000 now; 202 s on 2 CPU processes."
    )
    assert summary(make_record()) == "No validation yet: 0 epochs ended; on one CPU."


def test_costs(whole, make_record):
    assert costs(whole) == [
        ("elapsed", "202 s"),
        ("device-hours", "0.0561"),
        ("exact grids per device-hour", f"{13 / (202 / 3600):.1f}"),
        ("training queries a second, mean", "108"),
        ("slowest and fastest epoch, queries a second", "100 and 117"),
    ]
    assert {cost for _, cost in costs(make_record())} == {"–"}


def test_a_complete_run(whole):
    resumed = LogEntry(time="", level="INFO", text="Resumed from x: step 1, epoch 0, batch 1 of 2.")
    assert standing(whole, [], NOW) == "Complete: 18 epochs, 576 steps."
    assert standing(whole, [resumed], NOW) == "Complete: 18 epochs, 576 steps. It was resumed once."
    assert standing(whole, [resumed] * 3, NOW).endswith(" It was resumed 3 times.")


@pytest.mark.parametrize(
    ("age", "says"),
    [
        (10, "It may be going on: its last sign of life is of 10 s before this page was made."),
        (600, "Its last sign of life is of 2026-01-02 02:54 UTC. It was not going on when this page was made."),
    ],
)
def test_a_run_that_goes_on_or_was_killed(make_record, tmp_path, age, says):
    beat = tmp_path / "heartbeats" / "rank_00000.json"
    beat.parent.mkdir()
    beat.touch()
    os.utime(beat, ((NOW - timedelta(seconds=age)).timestamp(),) * 2)
    record = make_record(place=str(tmp_path), steps=STEPS, epochs=epochs(0.1), config={"train.epochs": 18})
    assert standing(record, [], NOW) == f"Not complete: 1 of 18 epochs ended, 576 steps logged. {says}"


def test_a_run_whose_log_tells_its_end(make_record):
    record = make_record(steps=STEPS, config={"train.epochs": 1})
    log = [LogEntry(time="", level="ERROR", text="ReplicaError: rank 1 differs.")]
    assert standing(record, log, NOW) == (
        "Not complete: 0 of 1 epoch ended, 576 steps logged. The log ends with: ReplicaError: rank 1 differs."
    )
