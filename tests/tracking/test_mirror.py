"""Mirrors that hang, fail or are slow: training hands its records over and continues."""

import logging
import math
import subprocess
import sys
import threading
import time

import pytest
from shared.made_runs import make_run

from arcdist import tracking
from arcdist.analysis.record import read_run_folder
from arcdist.config import load_config
from arcdist.errors import PlatformError
from arcdist.tracking import Mirrors, check_mirrors, open_mirrors, wandb
from arcdist.tracking.mirror import Mirror, Row, make_rows


class Listed(Mirror):
    """Keeps its calls, and fails or hangs at one of them."""

    name = "The list"
    remedy = "read it"

    def __init__(self, *, fails_at=None, hangs_at=None, failure=None):
        self.calls = []
        self.threads = set()
        self.released = threading.Event()
        self._fails_at, self._hangs_at = fails_at, hangs_at
        self._failure = failure or OSError(28, "No space left on device")

    def _note(self, name, *values):
        self.threads.add(threading.current_thread())
        if name == self._hangs_at:
            self.released.wait(20)
            raise ConnectionError("released")
        if name == self._fails_at:
            raise self._failure
        self.calls.append((name, *values))

    def open(self):
        self._note("open")

    def log(self, row):
        self._note("log", row)

    def log_best(self, folder):
        self._note("log_best", folder)

    def close(self, exit_code):
        self._note("close", exit_code)

    def interrupt(self):
        self.calls.append(("interrupt",))

    def kill(self):
        self.calls.append(("kill",))
        self.released.set()


def log_all(mirrors, folder):
    mirrors.catch_up([{"step": 1, "epoch": 0}], [], list)
    mirrors.log_step({"step": 2, "epoch": 0, "loss": math.nan, "flags": ["loss_flat"]}, ends_epoch=True)
    mirrors.log_epoch(2, {"epoch": 0, "val/exact": math.inf}, None, folder / "plot.png")
    mirrors.log_best(folder)


def test_all_is_shown_in_order_in_one_thread_and_as_it_is_stored(tmp_path):
    mirror = Listed()
    mirrors = Mirrors([mirror])
    log_all(mirrors, tmp_path)
    mirrors.close(3)
    plot = tmp_path / "plot.png"
    numbers = {"step": 2, "epoch": 0, "loss": None, "flags": ["loss_flat"], "val/exact": None}
    assert mirror.calls == [
        ("open",),
        ("log", Row(step=1, numbers={"step": 1, "epoch": 0})),
        ("log", Row(step=2, numbers=numbers, ends_epoch=True, plot=plot)),
        ("log_best", tmp_path),
        ("close", 3),
    ]
    (thread,) = mirror.threads
    assert thread.daemon
    assert thread is not threading.current_thread()


def test_a_step_that_ends_its_epoch_waits_for_the_epoch_s_record():
    mirror = Listed()
    mirrors = Mirrors([mirror])
    mirrors.log_step({"step": 1}, ends_epoch=True)  # whose epoch is never logged
    mirrors.log_step({"step": 2}, ends_epoch=True)
    mirrors.log_epoch(3, {"epoch": 0}, None, None)  # of another step
    mirrors.log_step({"step": 4}, ends_epoch=True)  # it is logged with its epoch after a resume
    mirrors.close(0)
    assert [(row.step, row.ends_epoch) for name, *rows in mirror.calls for row in rows if name == "log"] == [
        (1, False), (2, False), (3, True)
    ]  # fmt: skip


def test_a_record_that_training_changes_afterwards_is_shown_as_it_was():
    mirror = Listed()
    mirrors = Mirrors([mirror])
    record = {"step": 2, "epoch": 0}
    mirrors.log_step(record, ends_epoch=False)
    record["epoch"] = 1
    mirrors.close(0)
    assert ("log", Row(step=2, numbers={"step": 2, "epoch": 0})) in mirror.calls


@pytest.mark.parametrize("place", ["open", "log", "log_best", "close"])
def test_a_failure_is_one_warning_and_ends_that_mirror_only(tmp_path, caplog, place):
    failing, other = Listed(fails_at=place), Listed()
    mirrors = Mirrors([failing, other])
    log_all(mirrors, tmp_path)
    log_all(mirrors, tmp_path)
    mirrors.close(0)
    assert [entry.getMessage() for entry in caplog.records] == [
        "The list lacks the rest of this run (OSError: [Errno 28] No space left on device). "
        "The run folder has everything: read it."
    ]
    assert failing.calls[-1] == ("kill",)
    assert [name for name, *_ in other.calls].count("log") == 4


def test_a_failure_that_says_nothing_is_called_by_its_kind(tmp_path, caplog):
    mirrors = Mirrors([Listed(fails_at="open", failure=TimeoutError())])
    mirrors.close(0)
    assert caplog.messages == [
        "The list lacks the rest of this run (TimeoutError). The run folder has everything: read it."
    ]


@pytest.mark.parametrize("place", ["open", "log", "close"])
def test_one_that_hangs_is_killed_in_time(tmp_path, caplog, place):
    hanging = Listed(hangs_at=place)
    mirrors = Mirrors([hanging])
    start = time.monotonic()
    log_all(mirrors, tmp_path)
    assert time.monotonic() - start < 0.1
    mirrors.close(0, seconds=0.5)
    assert 0.5 <= time.monotonic() - start < 2
    # Released, it fails, and lets go once more.
    assert hanging.calls[-3:] == [("interrupt",), ("kill",), ("kill",)]
    assert len([entry for entry in caplog.records if entry.levelno == logging.WARNING]) == 1
    assert "(it took too long to end)" in caplog.text
    mirrors.log_step({"step": 3, "epoch": 1}, ends_epoch=False)
    mirrors.close(0)


def test_without_mirrors_there_is_nothing(tmp_path):
    before = threading.active_count()
    record = read_run_folder(make_run(tmp_path / "run", epochs=1))
    config = load_config(["--recipe", "quickstart", "--tracking.wandb", "disabled"]).config
    mirrors = open_mirrors(tmp_path / "run", record.identity, config, best_metric="val/exact")
    log_all(mirrors, tmp_path)
    mirrors.close(0)
    assert threading.active_count() == before


def test_a_package_that_is_asked_for_and_missing_is_reported_at_once(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    monkeypatch.setattr(wandb, "find_spec", lambda name: None)
    for flags, name in ((("--tracking.tensorboard", "true"), "tensorboard"), (("--tracking.wandb", "online"), "wandb")):
        loaded = load_config(["--recipe", "quickstart", *flags])
        with pytest.raises(PlatformError, match=rf"{name} is not installed: pip install 'arcdist\[{name}\]'"):
            check_mirrors(loaded)


def test_tracking_is_quick_to_import():
    program = "import sys, arcdist.tracking; print({'torch', 'wandb', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_an_epoch_is_in_the_row_of_its_last_step(tmp_path):
    record = read_run_folder(make_run(tmp_path / "run"))
    rows = make_rows(record.steps, record.epochs, record.validations)
    assert [row.step for row in rows] == list(range(10, 121, 10))
    assert [row.step for row in rows if row.ends_epoch] == [40, 80, 120]
    assert [row.validation for row in rows if row.validation] == list(record.validations)
    epoch = {"epoch": 0, "val/exact": 0.5, "floor/copy_exact": 0.0, "train/loss": 1.0, "step": 10}
    (row,) = make_rows([{"step": 10, "epoch": 0, "loss": 2.0}], [epoch], [])
    assert row.numbers == {
        "step": 10, "epoch": 0, "loss": 2.0,
        "val/exact": 0.5, "floor/copy_exact": 0.0, "epoch/train/loss": 1.0, "epoch/step": 10,
    }  # fmt: skip


def test_an_epoch_whose_end_was_not_logged_has_a_row_of_its_own():
    rows = make_rows([{"step": 30, "epoch": 0}], [{"epoch": 0, "step": 40, "val/exact": 0.5}], [])
    assert [row.numbers for row in rows] == [
        {"step": 30, "epoch": 0}, {"epoch": 0, "epoch/step": 40, "val/exact": 0.5}
    ]  # fmt: skip


def test_a_flag_that_ended_the_run_is_in_the_row_of_its_step():
    steps = [{"step": 5, "epoch": 0, "loss": 1.0, "flags": []}, {"step": 5, "epoch": 0, "flags": ["loss_flat"]}]
    (row,) = make_rows(steps, [], [])
    assert row.numbers == {"step": 5, "epoch": 0, "loss": 1.0, "flags": ["loss_flat"]}
