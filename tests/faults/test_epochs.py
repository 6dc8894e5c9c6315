"""What is served in an epoch, over crashes and changes of the number of processes."""

import json
from collections import Counter

import pytest

pytestmark = pytest.mark.slow

STEPS_PER_EPOCH = 5
QUERIES = 29


def noted(notes, processes):
    """Ids that each process was given of its own, step by step."""
    files = [notes / f"rank_{rank:05d}.jsonl" for rank in range(processes)]
    records = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return [[query for record in step for query in record["own"]] for step in zip(*records, strict=False)]


def assert_epochs_are_whole(steps):
    for epoch in range(3):
        served = Counter(
            query for step in steps[STEPS_PER_EPOCH * epoch : STEPS_PER_EPOCH * (epoch + 1)] for query in step
        )
        assert len(served) == QUERIES
        assert set(served.values()) == {1}


@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_serves_each_query_once(uninterrupted, processes):
    steps = noted(uninterrupted(processes).parent / "notes", processes)
    assert len(steps) == 3 * STEPS_PER_EPOCH
    assert_epochs_are_whole(steps)


def test_it_does_so_over_crashes_and_other_numbers_of_processes(start, uninterrupted, noting):
    kept = []
    for processes, crash_at in ((2, 4), (1, 8), (2, None)):
        attempt = start("--resume", "auto", processes=processes, launcher=False, program=noting)
        if crash_at:
            attempt.wait_for_step(crash_at)
            attempt.kill()
        else:
            assert attempt.wait() == 0, attempt.output
        # Steps after the checkpoint that the next start continues from are taken again.
        kept = kept[: attempt.resumed_from] + noted(start.notes, processes)
        for file in start.notes.iterdir():
            file.unlink()
    assert attempt.resumed_from >= 6
    assert_epochs_are_whole(kept)
    expected = noted(uninterrupted(1).parent / "notes", 1)
    assert [sorted(step) for step in kept] == [sorted(step) for step in expected]


def test_padding_counts_in_no_metric(epochs, uninterrupted):
    # On two processes the last batch of an epoch, and of the validation, leaves one without a query of its own.
    two, one = epochs(uninterrupted(2)), epochs(uninterrupted(1))
    for record, expected in zip(two, one, strict=True):
        assert record.pop("imbalance") > expected.pop("imbalance") == 1.0  # Two share the work, not quite evenly.
        assert record == pytest.approx(expected, rel=1e-4, abs=1e-4, nan_ok=True)
