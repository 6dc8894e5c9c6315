"""Validations as files of a run folder."""

import pytest
from shared.made_runs import make_run

from arcdist.errors import DataError
from arcdist.tracking import TrainingMetricsTracker
from arcdist.tracking.validation import read_validations, validation_path, write_validation


def test_what_is_written_is_read(tmp_path):
    before = read_validations(make_run(tmp_path / "run", epochs=2))
    assert [validation.epoch for validation in before] == [0, 1]
    other = tmp_path / "other"
    other.mkdir()
    for validation in before:
        write_validation(other, validation)
    assert read_validations(other) == before


def test_a_resumed_run_forgets_the_validations_after_its_checkpoint(tmp_path):
    run = make_run(tmp_path / "run", epochs=3)
    tracker = TrainingMetricsTracker(run)
    tracker.go_on_from(40, tracker.epochs[:1])
    assert [validation.epoch for validation in read_validations(run)] == [0]


@pytest.mark.parametrize("content", ["", "[]", '{"epoch": 0}', '{"epoch": 0, "step": 1, "results": [], "shown": []}'])
def test_a_broken_file_is_named(tmp_path, content):
    path = validation_path(make_run(tmp_path / "run", epochs=1), 0)
    path.write_text(content)
    with pytest.raises(DataError, match=r"epoch_00000\.json is no validation"):
        read_validations(tmp_path / "run")
