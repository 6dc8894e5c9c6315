"""A run's numbers on disk: whole files, the best epoch, resumed runs and full disks."""

import errno
import json
import logging
import math
from contextlib import contextmanager
from pathlib import Path

import pytest
from shared.made_runs import make_run

from arcdist.errors import DataError
from arcdist.tracking import TrainingMetricsTracker, metrics, plots
from arcdist.tracking.metrics import Validation, read_validations, validation_path, write_validation


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
    tracker.resume_from(40, tracker.epochs[:1])
    assert [validation.epoch for validation in read_validations(run)] == [0]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"epoch": 0}',
        '{"epoch": 0, "step": 1, "results": [], "shown": []}',
        '{"epoch": 0, "step": 1, "results": {"a:test:0": {"exact": "yes", "cell": 1, "confidence": 1}}, "shown": []}',
    ],
)
def test_a_broken_file_is_named(tmp_path, content):
    path = validation_path(make_run(tmp_path / "run", epochs=1), 0)
    path.write_text(content)
    with pytest.raises(DataError, match=r"epoch_00000\.json is not a validation"):
        read_validations(tmp_path / "run")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_steps_are_appended_one_object_a_line(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.log_step({"step": 50, "epoch": 0, "loss": 1.5, "flags": []})
    assert lines(tmp_path / "steps.jsonl") == [{"step": 50, "epoch": 0, "loss": 1.5, "flags": []}]
    tracker.log_step({"step": 100, "epoch": 0, "loss": math.nan, "grad_norm/qwen": math.inf, "flags": ["loss_flat"]})
    assert lines(tmp_path / "steps.jsonl")[1] == {
        "step": 100, "epoch": 0, "loss": None, "grad_norm/qwen": None, "flags": ["loss_flat"]
    }  # fmt: skip


def test_metrics_file_holds_epochs_and_the_best(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    first = {"epoch": 0, "train/loss": 2.0, "val/exact": 0.02, "val/cell": 0.7}
    second = {"epoch": 1, "train/loss": math.inf, "val/exact": 0.01, "val/cell": 0.8}
    assert tracker.log_epoch(first) is True
    assert tracker.log_epoch(second) is False
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "epochs": [first, {**second, "train/loss": None}],
        "best": {"metric": "val/exact", **first},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_ties_go_to_the_higher_cell_accuracy_then_to_the_earlier_epoch(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    scores = [(0.01, 0.9), (0.03, 0.7), (0.03, 0.8), (0.03, 0.8), (0.02, 1.0)]
    improved = [
        tracker.log_epoch({"epoch": epoch, "val/exact": exact, "val/cell": cell})
        for epoch, (exact, cell) in enumerate(scores)
    ]
    assert improved == [True, True, True, False, False]
    assert tracker.best["epoch"] == 2


def test_the_best_can_be_chosen_by_another_measure(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path, best_metric="val/accuracy_delta")
    tracker.log_epoch({"epoch": 0, "val/exact": 0.5, "val/accuracy_delta": -0.01})
    assert tracker.log_epoch({"epoch": 1, "val/exact": 0.1, "val/accuracy_delta": 0.01}) is True
    assert tracker.best["metric"] == "val/accuracy_delta"


def test_epochs_without_a_score_are_never_best(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    assert tracker.log_epoch({"epoch": 0, "train/loss": 1.0}) is False
    assert tracker.log_epoch({"epoch": 1, "val/exact": math.nan}) is False
    assert tracker.best == {}
    assert tracker.log_epoch({"epoch": 2, "val/exact": 0.0}) is True


def test_a_repeated_epoch_replaces_its_record(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    for epoch, exact in ((0, 0.1), (1, 0.3), (2, 0.2), (1, 0.15)):
        tracker.log_epoch({"epoch": epoch, "val/exact": exact})
    assert [(record["epoch"], record["val/exact"]) for record in tracker.epochs] == [(0, 0.1), (1, 0.15), (2, 0.2)]
    assert tracker.best["epoch"] == 2


def test_a_new_tracker_goes_on_from_the_files(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.log_step({"step": 1, "epoch": 0, "loss": 1.0})
    tracker.log_epoch({"epoch": 0, "val/exact": 0.2})
    resumed = TrainingMetricsTracker(tmp_path)
    assert resumed.best == tracker.best
    assert resumed.log_epoch({"epoch": 1, "val/exact": 0.1}) is False
    resumed.log_step({"step": 2, "epoch": 1, "loss": 0.5})
    assert [step["step"] for step in lines(tmp_path / "steps.jsonl")] == [1, 2]
    assert [record["epoch"] for record in json.loads((tmp_path / "metrics.json").read_text())["epochs"]] == [0, 1]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path, caplog):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step": 1, "epoch": 0, "loss": 1.0}\n{"step": 2, "ep')
    caplog.set_level(logging.WARNING, logger="arcdist")
    TrainingMetricsTracker(tmp_path).log_step({"step": 2, "epoch": 0, "loss": 0.5})
    assert [step["step"] for step in lines(path)] == [1, 2]
    assert "dropped an unfinished last line" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("steps.jsonl", '{"step": 1}\n{"step": \n{"step": 3}\n', r"steps\.jsonl, line 2 is not JSON"),
        ("steps.jsonl", '{"step": 1}\n{}\n', r"steps\.jsonl, line 2 is no record of a step"),
        ("steps.jsonl", "[1]\n", r"steps\.jsonl, line 1 is no record of a step"),
        ("metrics.json", '{"epochs": [{}]}', r"metrics\.json is not a metrics file"),
        ("metrics.json", "{", r"metrics\.json is not a metrics file"),
        ("steps.jsonl", '{"step": 1, "loss": "low"}\n', r"line 1 is no record of a step \(loss is 'low'\): repair or"),
        ("metrics.json", "[]", r"metrics\.json is not a metrics file"),
        ("metrics.json", '{"epochs": {}}', r"metrics file \(TypeError\('epochs is no list"),
        ("metrics.json", '{"epochs": [[1]]}', r"metrics\.json is not a metrics file \(TypeError\('\[1\] is no object"),
        ("metrics.json", '{"epochs": [{"epoch": 0, "val/exact": "1"}]}', r"metrics file \(TypeError.*val/exact is '1'"),
        ("metrics.json", '{"epochs": [], "best": [1]}', r"metrics\.json is not a metrics file"),
        ("metrics.json", '{"best": {}}', r"metrics\.json is not a metrics file \(KeyError"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        TrainingMetricsTracker(tmp_path)


def test_draw_leaves_the_plot(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.log_step({"step": 50, "epoch": 0, "loss": math.nan})
    tracker.log_epoch({"epoch": 0, "train/loss": 1.0, "val/exact": 0.1})
    assert tracker.draw() == tmp_path / "metrics_plot.png"
    assert (tmp_path / "metrics_plot.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_of_short_epochs_take_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    now, drawn = [100.0], []
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])

    def plot_metrics(*_):
        drawn.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(plots, "plot_metrics", plot_metrics)
    tracker = TrainingMetricsTracker(tmp_path)
    for _ in range(60):
        tracker.draw(sparingly=True)
        now[0] += 1.0
    assert drawn == [100.0, 126.5, 153.0]
    tracker.draw()
    assert len(drawn) == 4


def test_one_that_does_not_write_knows_the_same_numbers_and_touches_no_file(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    silent, writing = TrainingMetricsTracker(tmp_path, writes=False), TrainingMetricsTracker(other)
    for tracker in (silent, writing):
        tracker.log_step({"step": 1, "epoch": 0, "loss": 1.0})
    for exact in (0.1, 0.3, 0.2):
        record = {"epoch": round(exact * 10), "val/exact": exact}
        assert silent.log_epoch(record) is writing.log_epoch(record)
    assert silent.epochs == writing.epochs
    assert silent.best == writing.best
    assert silent.draw() == tmp_path / "metrics_plot.png"
    assert list(tmp_path.iterdir()) == [other]


def test_one_that_does_not_write_reads_no_files_either(tmp_path):
    (tmp_path / "steps.jsonl").write_text("half a li")
    (tmp_path / "metrics.json").write_text("{")
    tracker = TrainingMetricsTracker(tmp_path, writes=False)  # process 0 is at work on them
    assert tracker.epochs == []
    assert (tmp_path / "steps.jsonl").read_text() == "half a li"


def numbers(tmp_path, steps, epochs):
    tracker = TrainingMetricsTracker(tmp_path)
    for step in range(1, steps + 1):
        tracker.log_step({"step": step, "epoch": (step - 1) // 2, "loss": 1.0 / step})
    for epoch in range(epochs):
        tracker.log_epoch({"epoch": epoch, "val/exact": 0.1 * (epoch + 1)})
    return tracker


def test_going_on_forgets_what_came_after_the_checkpoint(tmp_path):
    numbers(tmp_path, steps=7, epochs=3)
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.resume_from(3, [{"epoch": 0, "val/exact": 0.1}])
    assert lines(tmp_path / "steps.jsonl") == [
        {"step": step, "epoch": (step - 1) // 2, "loss": 1.0 / step} for step in (1, 2, 3)
    ]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "epochs": [{"epoch": 0, "val/exact": 0.1}],
        "best": {"metric": "val/exact", "epoch": 0, "val/exact": 0.1},
    }
    assert (tracker.epochs, tracker.best["epoch"]) == ([{"epoch": 0, "val/exact": 0.1}], 0)
    tracker.log_step({"step": 4, "epoch": 1, "loss": 0.0})
    assert [step["step"] for step in lines(tmp_path / "steps.jsonl")] == [1, 2, 3, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"steps.jsonl", "metrics.json"}


def test_going_on_from_the_end_changes_no_byte(tmp_path):
    epochs = numbers(tmp_path, steps=4, epochs=2).epochs
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    TrainingMetricsTracker(tmp_path).resume_from(4, epochs)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_going_on_in_the_first_epoch_leaves_no_metrics_file(tmp_path):
    numbers(tmp_path, steps=4, epochs=1)
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.resume_from(1, [])
    assert [path.name for path in tmp_path.iterdir()] == ["steps.jsonl"]
    assert tracker.best == {}


def test_going_on_in_a_new_folder_knows_the_epochs_of_the_checkpoint(tmp_path):
    # A file that was lost does not matter either: the checkpoint holds the epochs.
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.resume_from(3, [{"epoch": 0, "val/exact": 0.3}])
    assert json.loads((tmp_path / "metrics.json").read_text())["best"]["val/exact"] == 0.3
    assert (tmp_path / "steps.jsonl").read_text() == ""
    assert tracker.log_epoch({"epoch": 1, "val/exact": 0.2}) is False


def test_one_that_does_not_write_goes_on_without_a_file(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path, writes=False)
    epochs = [{"epoch": 0, "val/exact": 0.3}]
    tracker.resume_from(3, epochs)
    assert tracker.epochs == epochs
    epochs[0]["val/exact"] = 0.0  # somebody else's
    assert tracker.best["val/exact"] == 0.3
    assert list(tmp_path.iterdir()) == []


class Disk:
    """A disk that is full while `is_full`: every opening of a file to write fails."""

    def __init__(self, monkeypatch):
        self.is_full = False
        real = Path.open

        def open_unless_full(path, mode="r", *arguments, **options):
            if self.is_full and mode != "r" and mode != "rb":
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return real(path, mode, *arguments, **options)

        monkeypatch.setattr(Path, "open", open_unless_full)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_a_full_disk_ends_no_run_and_loses_no_number(tmp_path, disk, caplog):
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.log_step({"step": 1, "epoch": 0})
    disk.is_full = True
    for step in (2, 3):
        tracker.log_step({"step": step, "epoch": 0})
    assert tracker.log_epoch({"epoch": 0, "val/exact": 0.5})
    tracker.log_validation(Validation(epoch=0, step=3, results={}, shown=()))
    assert [record["step"] for record in lines(tmp_path / "steps.jsonl")] == [1]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3  # once a file
    assert messages[0].startswith(f"NOT WRITTEN: {tmp_path / 'steps.jsonl'} (No space left on device).")

    disk.is_full = False
    tracker.log_step({"step": 4, "epoch": 1})
    assert [record["step"] for record in lines(tmp_path / "steps.jsonl")] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == [{"epoch": 0, "val/exact": 0.5}]
    assert [validation.step for validation in read_validations(tmp_path)] == [3]
    tracker.log_step({"step": 5, "epoch": 1})
    assert [record["step"] for record in lines(tmp_path / "steps.jsonl")] == [1, 2, 3, 4, 5]
    assert len(caplog.records) == 3


def test_half_a_line_that_a_full_disk_took_is_no_part_of_the_file(tmp_path, monkeypatch):
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.log_step({"step": 1, "epoch": 0})
    real = Path.open

    @contextmanager
    def half(path, mode="r", **options):
        with real(path, mode, **options) as lines:
            lines.write('{"step": 2, "ep')
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", half)
        tracker.log_step({"step": 2, "epoch": 0})
    assert (tmp_path / "steps.jsonl").read_text().endswith('{"step": 2, "ep')
    tracker.log_step({"step": 3, "epoch": 0})
    assert [record["step"] for record in lines(tmp_path / "steps.jsonl")] == [1, 2, 3]
