import shutil
import threading
import time

import pytest
import torch

from arcdist.checkpoint import saver as saver_module
from arcdist.checkpoint.saver import Saver
from arcdist.checkpoint.store import FILES, MANIFEST, Snapshot, checkpoints, load_checkpoint, step_folder
from arcdist.errors import SaveError


def snapshot(value):
    return Snapshot(weights={"a": torch.full((3,), float(value))}, moments={}, prompts={}, state={"step": value})


@pytest.fixture
def disk(monkeypatch):
    """A disk that writes one checkpoint whenever it is told to, or refuses it, and notes what came when."""

    class Disk:
        def __init__(self):
            self.notes = []
            self.errors = []
            self._turns = threading.Semaphore(0)

        def save(self, folder, saved):
            self.notes.append(("begins", folder.name, threading.current_thread().name))
            assert self._turns.acquire(timeout=10)
            self.notes.append(("ends", folder.name, threading.current_thread().name))
            if self.errors:
                raise self.errors.pop(0)

        def write(self, count=1):
            self._turns.release(count)

        def begun(self, count):
            give_up = time.monotonic() + 10
            while sum(note[0] == "begins" for note in self.notes) < count:
                assert time.monotonic() < give_up
                time.sleep(0.002)

    disk = Disk()
    monkeypatch.setattr(saver_module, "save_checkpoint", disk.save)
    return disk


def test_one_snapshot_is_written_into_several_folders_byte_for_byte_alike(tmp_path):
    saver = Saver(keep_last=5)
    step = step_folder(tmp_path / "checkpoints", 7)
    saver.save(snapshot(7), [step, tmp_path / "best"])
    saver.wait()
    assert not saver.failed()
    for name in (*FILES, MANIFEST):
        assert (step / name).read_bytes() == (tmp_path / "best" / name).read_bytes()
    assert load_checkpoint(step).state == {"step": 7}


def test_training_goes_on_while_a_thread_writes_and_only_the_next_save_waits(tmp_path, disk):
    saver = Saver(keep_last=5)
    saver.save(snapshot(1), [tmp_path / "one"])
    disk.begun(1)
    assert [note[0] for note in disk.notes] == ["begins"]  # nothing waited for its end
    assert disk.notes[0][2].startswith("saver")
    assert not saver.failed()  # nor does asking

    second = threading.Thread(target=saver.save, args=(snapshot(2), [tmp_path / "two"]))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    disk.write()
    second.join(10)
    assert not second.is_alive()
    disk.write()
    saver.wait()
    assert [note[:2] for note in disk.notes] == [("begins", "one"), ("ends", "one"), ("begins", "two"), ("ends", "two")]


def test_after_waiting_everything_is_on_disk_and_waiting_again_is_nothing(tmp_path):
    saver = Saver(keep_last=5)
    saver.wait()
    for step in range(1, 4):
        saver.save(snapshot(step), [step_folder(tmp_path, step)])
    saver.wait()
    saver.wait()
    assert [load_checkpoint(folder).state["step"] for folder in checkpoints(tmp_path)] == [1, 2, 3]


def test_a_failure_is_known_when_it_is_there_and_told_once(tmp_path, disk):
    saver = Saver(keep_last=5)
    disk.errors.append(SaveError("The disk is full."))
    saver.save(snapshot(1), [tmp_path / "one"])
    disk.begun(1)
    assert not saver.failed()
    disk.write()
    saver.wait()
    assert saver.failed()
    assert saver.failed()  # until it has been told
    assert saver.take_failure() == "The disk is full."
    assert not saver.failed()
    assert saver.take_failure() == ""


def test_a_failure_shows_without_waiting_once_the_thread_is_done(tmp_path, disk):
    saver = Saver(keep_last=5)
    disk.errors.append(SaveError("The disk is full."))
    saver.save(snapshot(1), [tmp_path / "one"])
    disk.write()
    give_up = time.monotonic() + 10
    while not saver.failed():
        assert time.monotonic() < give_up
        time.sleep(0.002)
    assert saver.take_failure() == "The disk is full."


def test_a_failure_does_not_keep_the_next_snapshot_from_being_written(tmp_path):
    (tmp_path / "file").write_text("")
    saver = Saver(keep_last=5)
    saver.save(snapshot(1), [tmp_path / "file" / "best"])
    saver.save(snapshot(2), [tmp_path / "best"])
    saver.wait()
    assert "Not a directory" in saver.take_failure()
    assert load_checkpoint(tmp_path / "best").state == {"step": 2}


def test_a_best_that_could_not_be_written_is_with_the_next_snapshot(tmp_path, monkeypatch):
    real, failures = saver_module.save_checkpoint, [SaveError("full"), SaveError("full")]

    def save_after_failures(folder, saved):
        if failures:
            raise failures.pop()
        real(folder, saved)

    monkeypatch.setattr(saver_module, "save_checkpoint", save_after_failures)
    saver = Saver(keep_last=5)
    saver.save(snapshot(1), [tmp_path / "best", step_folder(tmp_path, 1)])
    saver.save(snapshot(2), [step_folder(tmp_path, 2)])
    saver.wait()
    assert load_checkpoint(tmp_path / "best").state == {"step": 1}  # as it was when it was the best
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_00000002"]
    # One that has been surpassed meanwhile is not tried again.
    failures.append(SaveError("full"))
    saver.save(snapshot(3), [tmp_path / "best"])
    saver.save(snapshot(4), [tmp_path / "best"])
    saver.wait()
    assert load_checkpoint(tmp_path / "best").state == {"step": 4}


def test_a_best_is_told_once_it_is_whole(tmp_path):
    told = []
    saver = Saver(keep_last=5, best_saved=lambda folder: told.append((folder, load_checkpoint(folder).state["step"])))
    saver.save(snapshot(1), [tmp_path / "best", step_folder(tmp_path, 1)])
    saver.save(snapshot(2), [step_folder(tmp_path, 2)])
    (tmp_path / "file").write_text("")
    saver.save(snapshot(3), [tmp_path / "file" / "best"])
    saver.wait()
    assert told == [(tmp_path / "best", 1)]


def test_what_is_no_matter_of_the_disk_is_raised_where_it_is_waited_for(tmp_path, disk):
    saver = Saver(keep_last=5)
    disk.errors.append(TypeError("not JSON"))
    disk.write()
    saver.save(snapshot(1), [tmp_path / "one"])
    with pytest.raises(TypeError, match="not JSON"):
        saver.wait()
    saver.wait()


def test_the_newest_numbered_folders_are_kept_and_no_other_has_a_part_in_that(tmp_path):
    saver = Saver(keep_last=2)
    for step in range(1, 5):
        saver.save(snapshot(step), [step_folder(tmp_path, step), tmp_path / "best"])
    saver.wait()
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000003", "step_00000004", "best"}
    assert load_checkpoint(tmp_path / "best").state == {"step": 4}
    # Of a folder that is saved beside numbered ones, none of those is removed.
    shutil.copytree(tmp_path / "step_00000003", tmp_path / "step_00000002")
    saver.save(snapshot(9), [tmp_path / "best"])
    saver.wait()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_00000002", "step_00000003", "step_00000004"]


def test_the_one_before_goes_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    saver = Saver(keep_last=1)
    saver.save(snapshot(1), [step_folder(tmp_path, 1)])
    saver.wait()

    def refuse(folder, saved):
        raise SaveError("The disk is full.")

    monkeypatch.setattr(saver_module, "save_checkpoint", refuse)
    saver.save(snapshot(2), [step_folder(tmp_path, 2)])
    saver.wait()
    assert saver.take_failure() == "The disk is full."
    assert load_checkpoint(step_folder(tmp_path, 1)).state == {"step": 1}


def test_a_best_that_cannot_be_written_costs_no_checkpoint(tmp_path, monkeypatch):
    real = saver_module.save_checkpoint

    def full_for_best(folder, snapshot):
        if folder.name == "best":
            raise SaveError("best is full")
        real(folder, snapshot)

    monkeypatch.setattr(saver_module, "save_checkpoint", full_for_best)
    saver = Saver(keep_last=5)
    step = tmp_path / "checkpoints" / "step_00000007"
    saver.save(Snapshot(weights={}, moments={}, prompts={}, state={"step": 7}), [tmp_path / "best", step])
    saver.wait()
    assert saver.take_failure() == "best is full"
    assert load_checkpoint(step).state == {"step": 7}
