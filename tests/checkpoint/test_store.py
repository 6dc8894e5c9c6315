"""Checkpoints are whole or not there, whatever happens while they are written, and are written beside training."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist.checkpoint import store
from arcdist.checkpoint.store import (
    FILES,
    FORMAT,
    MANIFEST,
    MOMENTS,
    STATE,
    WEIGHTS,
    Checkpointing,
    Snapshot,
    checkpoints,
    clear_leftovers,
    finish_replacement,
    flaw,
    load_checkpoint,
    manifest_entry,
    manifest_text,
    prune,
    read_manifest,
    save_checkpoint,
    step_folder,
)
from arcdist.config import OutputConfig
from arcdist.errors import DataError, SaveError

ENTRIES = st.dictionaries(st.text(), st.binary().map(manifest_entry))
TEXT = manifest_text({"weights.safetensors": manifest_entry(b"weights"), "state.json": manifest_entry(b"{}\n")})


def test_an_entry_is_the_size_and_the_sha_256_of_a_file_s_content():
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest_entry(b"abc") == {"size": 3, "sha256": digest}


@given(ENTRIES)
def test_what_was_listed_is_read(entries):
    assert read_manifest(manifest_text(entries)) == entries


@given(ENTRIES)
def test_the_text_does_not_depend_on_the_order_of_the_files(entries):
    assert manifest_text(dict(reversed(entries.items()))) == manifest_text(entries)


def test_every_single_flipped_bit_is_refused():
    content = TEXT.encode()
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            # Latin-1 gives every byte some character; UTF-8 would refuse some before they are read.
            with pytest.raises(DataError):
                read_manifest(damaged.decode("latin-1"))


@given(position=st.integers(0, len(TEXT) - 1), byte=st.characters(max_codepoint=255))
def test_any_other_byte_in_any_place_is_refused(position, byte):
    changed = TEXT[:position] + byte + TEXT[position + 1 :]
    if changed != TEXT:
        with pytest.raises(DataError):
            read_manifest(changed)


@given(st.integers(0, len(TEXT) - 1))
def test_a_text_that_was_cut_off_is_refused(length):
    with pytest.raises(DataError):
        read_manifest(TEXT[:length])


@pytest.mark.parametrize("added", [" ", "\n", "x", "{}"])
def test_so_is_one_with_something_added(added):
    for text in (TEXT + added, added + TEXT):
        with pytest.raises(DataError):
            read_manifest(text)


def test_a_changed_checksum_is_told_as_such():
    content = json.loads(TEXT)
    content["files"]["state.json"] = content["files"]["weights.safetensors"]
    with pytest.raises(DataError, match=r"^its own checksum is wrong$"):
        read_manifest(json.dumps(content, indent=2) + "\n")


def test_a_later_format_says_that_arcdist_is_too_old():
    text = TEXT.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}')
    with pytest.raises(DataError, match=r"^format 2 is that of a later version of arcdist: update arcdist$"):
        read_manifest(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "3", '"text"', "{}", "nan", "{", "\x00"),
        *('{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {"size": 1}}}', '{"format": "1", "files": {}}'),
        *("[" * 100_000, '{"files": {"a": {"size": "1", "sha256": ""}}}'),
    ],
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(DataError, match=r"^it is no list of checksums$"):
        read_manifest(text)


@given(st.text())
def test_so_is_any_text_that_is_not_one(text):
    with pytest.raises(DataError):
        read_manifest(text)


DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool)


def tensors(value):
    """One tensor of each type that a run keeps, and an empty one."""
    return {str(dtype): torch.tensor([value, 0, 1]).to(dtype) for dtype in DTYPES} | {"empty": torch.zeros(0, 4)}


def save(folder, value=1):
    moments = {"p@exp_avg": torch.full((2,), float(value))}
    save_checkpoint(folder, Snapshot(weights=tensors(value), moments=moments, prompts={}, state={"step": value}))


def assert_holds(folder, value):
    snapshot = load_checkpoint(folder)
    weights, moments, state = snapshot.weights, snapshot.moments, snapshot.state
    expected = tensors(value)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)
    assert moments["p@exp_avg"].tolist() == [value, value]
    assert state == {"step": value}


def test_what_is_saved_is_what_is_loaded_and_nothing_else_is_there(tmp_path):
    folder = tmp_path / "checkpoints" / "step_00000001"
    save(folder)
    assert_holds(folder, 1)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, MANIFEST])
    assert list(folder.parent.iterdir()) == [folder]


def test_a_checkpoint_of_the_same_name_is_replaced(tmp_path):
    save(tmp_path / "best", 1)
    save(tmp_path / "best", 2)
    assert_holds(tmp_path / "best", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("failure", ["weights", "state"])
def test_a_failure_while_writing_leaves_the_old_one(tmp_path, failure):
    save(tmp_path / "best", 1)
    shared = torch.zeros(4)  # safetensors refuses two names for one memory
    weights = {"a": shared, "b": shared[:2]} if failure == "weights" else {"a": shared}
    state = {"step": object()} if failure == "state" else {"step": 2}
    with pytest.raises((RuntimeError, TypeError)):
        save_checkpoint(tmp_path / "best", Snapshot(weights=weights, moments={}, prompts={}, state=state))
    assert_holds(tmp_path / "best", 1)
    # What the failure left behind is in nobody's way.
    save(tmp_path / "best", 3)
    assert_holds(tmp_path / "best", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_was_half_written_is_no_checkpoint(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(step_folder(tmp_path, 7), Snapshot(weights={}, moments={}, prompts={}, state={"a": object()}))
    assert checkpoints(tmp_path) == []


def test_the_newest_are_kept_in_the_order_of_their_steps(tmp_path):
    for step in (100, 5, 20, 1000000):
        save(step_folder(tmp_path, step))
    (tmp_path / "notes").mkdir()
    assert [folder.name for folder in checkpoints(tmp_path)] == [
        "step_00000005",
        "step_00000020",
        "step_00000100",
        "step_01000000",
    ]
    prune(tmp_path, keep_last=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_00000100", "step_01000000"]
    prune(tmp_path, keep_last=5)
    assert len(checkpoints(tmp_path)) == 2
    assert (tmp_path / "notes").is_dir()


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "cut off", "garbage"])
def test_a_broken_checkpoint_is_told_by_its_path(tmp_path, name, damage):
    save(tmp_path / "best")
    file = tmp_path / "best" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3] if damage == "cut off" else b"\xff\xfe garbage")
    with pytest.raises(DataError) as raised:
        load_checkpoint(tmp_path / "best")
    assert str(file) in str(raised.value)
    assert raised.value.exit_code == 2


def test_there_is_nothing_to_unpickle(tmp_path):
    save(tmp_path / "best")
    json.loads((tmp_path / "best" / STATE).read_text())
    for name in (WEIGHTS, MOMENTS):
        content = (tmp_path / "best" / name).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        # safetensors: a length, a JSON header, and the bytes that it names; nothing after them.
        end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        assert len(content) == 8 + int.from_bytes(content[:8], "little") + end


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint that tests damage and mend."""
    folder = tmp_path_factory.mktemp("whole") / "step_00000001"
    save(folder)
    return folder


def assert_told(folder, file):
    """Both ways of looking name the file that is broken."""
    told = flaw(folder)
    assert told is not None
    assert str(file) in told
    with pytest.raises(DataError) as raised:
        load_checkpoint(folder)
    assert str(raised.value) == told


@given(name=st.sampled_from([*FILES, MANIFEST]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_single_flipped_bit_anywhere_is_found(whole, name, place, bit):
    file = whole / name
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[int(place * len(content))] ^= 1 << bit
    file.write_bytes(damaged)
    try:
        assert_told(whole, file)
    finally:
        file.write_bytes(content)
    assert flaw(whole) is None


@given(name=st.sampled_from([*FILES, MANIFEST]), place=st.floats(0, 1, exclude_max=True))
def test_so_is_a_tail_that_was_cut_off_or_added(whole, name, place):
    file = whole / name
    content = file.read_bytes()
    for damaged in (content[: int(place * len(content))], content + content[: 1 + int(place * 10)]):
        file.write_bytes(damaged)
        try:
            assert_told(whole, file)
        finally:
            file.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_so_is_a_file_that_is_missing_and_one_that_is_a_folder(tmp_path, name):
    save(tmp_path / "best")
    file = tmp_path / "best" / name
    file.unlink()
    assert_told(tmp_path / "best", file)
    file.mkdir()
    assert_told(tmp_path / "best", file)


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_that_leaves_a_file_out_is_refused(tmp_path, name):
    save(tmp_path / "best")
    manifest = tmp_path / "best" / MANIFEST
    manifest.write_text(manifest_text({k: v for k, v in read_manifest(manifest.read_text()).items() if k != name}))
    with pytest.raises(DataError, match=f"manifest.json does not list {name}"):
        load_checkpoint(tmp_path / "best")


def test_a_folder_that_is_not_there_is_told(tmp_path):
    assert_told(tmp_path / "best", tmp_path / "best" / MANIFEST)


def test_files_with_right_checksums_that_are_no_tensors_are_told(tmp_path):
    folder = tmp_path / "best"
    save(folder)
    (folder / WEIGHTS).write_bytes(b"no tensors")
    listed = {name: manifest_entry((folder / name).read_bytes()) for name in FILES}
    (folder / MANIFEST).write_text(manifest_text(listed))
    assert flaw(folder) is None  # which looks at checksums only
    with pytest.raises(DataError, match=r"best/weights\.safetensors is no safetensors file \(.*\)\.$"):
        load_checkpoint(folder)


class Killed(BaseException):
    """What stands for the end of the process."""


@pytest.fixture
def die_at(monkeypatch):
    """Have the n-th call that changes or forces something on disk fail, from now on; 0 takes that back."""
    calls = [0, 0, Killed()]

    def counted(real):
        def call(*arguments, **keywords):
            calls[0] += 1
            if calls[0] == calls[1]:
                raise calls[2]
            return real(*arguments, **keywords)

        return call

    for owner, name in ((Path, "rename"), (Path, "mkdir"), (Path, "open"), (os, "fsync"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))

    def set_to(number, error=None):
        calls[:] = [0, number, error or Killed()]

    return set_to


STEPS_OF_A_REPLACEMENT = 17
"""mkdir; open and fsync of five files; fsync of the folder; two renames; fsync; rmtree; fsync."""


@pytest.mark.parametrize("number", range(1, STEPS_OF_A_REPLACEMENT + 1))
def test_whenever_a_replacement_is_cut_off_the_old_one_or_the_new_one_is_there_whole(tmp_path, die_at, number):
    best = tmp_path / "best"
    save(best, 1)
    die_at(number)
    with pytest.raises(Killed):
        save(best, 2)
    die_at(0)
    finish_replacement(best)
    clear_leftovers(tmp_path)
    # From the first renaming on, the new one is the one.
    assert_holds(best, 1 if number <= 13 else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_replacement_has_so_many_steps(tmp_path, die_at):
    save(tmp_path / "best", 1)
    die_at(STEPS_OF_A_REPLACEMENT + 1)
    save(tmp_path / "best", 2)
    die_at(STEPS_OF_A_REPLACEMENT)
    with pytest.raises(Killed):
        save(tmp_path / "best", 3)


@pytest.mark.parametrize(("new_is_whole", "expected"), [(True, 2), (False, 1)])
def test_between_its_two_renamings_the_new_one_is_taken_where_it_is_whole(tmp_path, new_is_whole, expected):
    save(tmp_path / ".best.replaced", 1)
    save(tmp_path / ".best.partial", 2)
    if not new_is_whole:
        (tmp_path / ".best.partial" / WEIGHTS).write_bytes(b"")
    finish_replacement(tmp_path / "best")
    assert_holds(tmp_path / "best", expected)
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_is_whole_or_was_never_there_needs_no_mending(tmp_path):
    finish_replacement(tmp_path / "best")
    assert list(tmp_path.iterdir()) == []
    save(tmp_path / "best", 1)
    save(tmp_path / ".best.partial", 2)
    finish_replacement(tmp_path / "best")
    assert_holds(tmp_path / "best", 1)


def test_leftovers_of_nothing_else_are_cleared(tmp_path):
    for name in (".step_00000001.partial", ".best.replaced", ".step_00000002.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).write_bytes(b"")
    kept = {".partial", "best.partial", ".git", "step_00000003"}
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".notes.partial").write_text("mine")
    clear_leftovers(tmp_path)
    clear_leftovers(tmp_path / "missing")
    assert {path.name for path in tmp_path.iterdir()} == kept | {".notes.partial"}


def assert_refused(save_it, folder, reason, mend="Make room, or lower --output.keep_last."):
    with pytest.raises(SaveError) as raised:
        save_it()
    message = str(raised.value)
    assert message.startswith(f"The checkpoint {folder} could not be written ({reason}")
    if reason != "Not a directory":
        assert re.search(r": it needs 560 bytes, and [\d.]+ [kMG]B are free there\. ", message)
    assert message.endswith(f" {mend}")
    assert raised.value.exit_code == 7


@pytest.mark.parametrize("number", range(1, STEPS_OF_A_REPLACEMENT + 1))
def test_a_full_disk_is_told_and_a_whole_one_stands(tmp_path, die_at, number):
    best = tmp_path / "best"
    save(best, 1)
    die_at(number, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert_refused(lambda: save(best, 2), best, "No space left on device")
    die_at(0)
    # Where the new one could be renamed, and only not be forced to disk, it stands: both are whole.
    assert_holds(best, 1 if number <= 14 else 2)
    assert not (tmp_path / ".best.partial").exists()
    save(best, 3)
    assert_holds(best, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("number", range(1, 13))
def test_where_there_was_none_a_full_disk_leaves_nothing(tmp_path, die_at, number):
    folder = step_folder(tmp_path, 7)
    die_at(number, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert_refused(lambda: save(folder), folder, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_file_beyond():
    """Have the kernel refuse to let a file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_bytes_that_are_needed_are_told_and_none_that_were_written_stay(tmp_path, no_file_beyond):
    folder = step_folder(tmp_path, 3)
    weights, moments = {"a": torch.ones(1_000_000)}, {"a": torch.ones(250_000, dtype=torch.int16)}
    no_file_beyond(3_000_000)  # the kernel writes as much, and then refuses
    with pytest.raises(SaveError, match=r"step_00000003 could not be written \(File too large\): it needs 4\.5 MB"):
        save_checkpoint(folder, Snapshot(weights=weights, moments=moments, prompts={}, state={}))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(
        lambda: save(tmp_path / "file" / "best"),
        tmp_path / "file" / "best",
        "Not a directory",
        "See what is wrong there.",
    )


def test_an_old_one_that_cannot_be_removed_is_told(tmp_path, monkeypatch):
    for step in (1, 2):
        save(step_folder(tmp_path, step))

    def refuse(self, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    old = step_folder(tmp_path, 1)
    with pytest.raises(SaveError, match=f"The old checkpoint {old} could not be removed .Permission denied") as raised:
        prune(tmp_path, 1)
    assert raised.value.exit_code == 7
    assert flaw(old) is None


def test_one_whose_removal_is_cut_off_is_no_checkpoint_any_more(tmp_path, die_at):
    for step in (1, 2):
        save(step_folder(tmp_path, step))
    die_at(2)  # after it was renamed
    with pytest.raises(Killed):
        prune(tmp_path, 1)
    die_at(0)
    assert checkpoints(tmp_path) == [step_folder(tmp_path, 2)]
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [step_folder(tmp_path, 2)]


def test_size_counts_the_bytes_of_all_tensors():
    parts = {"weights": {"a": torch.zeros(3, 5)}, "moments": {"a": torch.zeros(7, dtype=torch.int8)}}
    prompts = {"q": torch.zeros(2, dtype=torch.float64), "r": torch.zeros(0)}
    assert Snapshot(**parts, prompts=prompts, state={"step": 1}).size == 60 + 7 + 16


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_whole_checkpoints_only(tmp_path):
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from arcdist.checkpoint.store import Snapshot, save_checkpoint, step_folder\n"
        "for step in range(1, 100000):\n"
        "    weights = {'a': torch.full((500_000,), float(step))}\n"
        "    snapshot = Snapshot(weights=weights, moments={}, prompts={}, state={'step': step})\n"
        "    save_checkpoint(step_folder(Path(sys.argv[1]), step), snapshot)\n"
    )
    for round_ in range(3):
        root = tmp_path / str(round_)
        writer = subprocess.Popen([sys.executable, "-c", program, str(root)])
        while len(checkpoints(root)) < 3 + round_:
            assert writer.poll() is None
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for folder in checkpoints(root):
            snapshot = load_checkpoint(folder)
            assert folder == step_folder(root, snapshot.state["step"])
            assert (snapshot.weights["a"] == snapshot.state["step"]).all()
        shutil.rmtree(root)


def checkpointing(folder, keep_last, **options):
    return Checkpointing(folder, OutputConfig(keep_last=keep_last), **options)


def failure_of(saver):
    """What it has to report; empty if there is nothing."""
    try:
        saver.report_failure(fatal=True)
    except SaveError as error:
        return str(error)
    return ""


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
    monkeypatch.setattr(store, "save_checkpoint", disk.save)
    return disk


def test_one_snapshot_is_written_into_several_folders_byte_for_byte_alike(tmp_path):
    saver = checkpointing(tmp_path, 5)
    step = step_folder(tmp_path / "checkpoints", 7)
    saver.write(snapshot(7), [step, tmp_path / "best"])
    saver.wait()
    assert not saver.failed()
    for name in (*FILES, MANIFEST):
        assert (step / name).read_bytes() == (tmp_path / "best" / name).read_bytes()
    assert load_checkpoint(step).state == {"step": 7}


def test_training_goes_on_while_a_thread_writes_and_only_the_next_save_waits(tmp_path, disk):
    saver = checkpointing(tmp_path, 5)
    saver.write(snapshot(1), [tmp_path / "one"])
    disk.begun(1)
    assert [note[0] for note in disk.notes] == ["begins"]  # nothing waited for its end
    assert disk.notes[0][2].startswith("saver")
    assert not saver.failed()  # nor does asking

    second = threading.Thread(target=saver.write, args=(snapshot(2), [tmp_path / "two"]))
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
    saver = checkpointing(tmp_path, 5)
    saver.wait()
    for step in range(1, 4):
        saver.write(snapshot(step), [step_folder(tmp_path, step)])
    saver.wait()
    saver.wait()
    assert [load_checkpoint(folder).state["step"] for folder in checkpoints(tmp_path)] == [1, 2, 3]


def test_a_failure_is_known_when_it_is_there_and_told_once(tmp_path, disk):
    saver = checkpointing(tmp_path, 5)
    disk.errors.append(SaveError("The disk is full."))
    saver.write(snapshot(1), [tmp_path / "one"])
    disk.begun(1)
    assert not saver.failed()
    disk.write()
    saver.wait()
    assert saver.failed()
    assert saver.failed()  # until it has been told
    assert failure_of(saver) == "The disk is full."
    assert not saver.failed()
    assert failure_of(saver) == ""


def test_a_failure_shows_without_waiting_once_the_thread_is_done(tmp_path, disk):
    saver = checkpointing(tmp_path, 5)
    disk.errors.append(SaveError("The disk is full."))
    saver.write(snapshot(1), [tmp_path / "one"])
    disk.write()
    give_up = time.monotonic() + 10
    while not saver.failed():
        assert time.monotonic() < give_up
        time.sleep(0.002)
    assert failure_of(saver) == "The disk is full."


def test_a_failure_does_not_keep_the_next_snapshot_from_being_written(tmp_path):
    (tmp_path / "file").write_text("")
    saver = checkpointing(tmp_path, 5)
    saver.write(snapshot(1), [tmp_path / "file" / "best"])
    saver.write(snapshot(2), [tmp_path / "best"])
    saver.wait()
    assert "Not a directory" in failure_of(saver)
    assert load_checkpoint(tmp_path / "best").state == {"step": 2}


def test_a_best_that_could_not_be_written_is_with_the_next_snapshot(tmp_path, monkeypatch):
    real, failures = store.save_checkpoint, [SaveError("full"), SaveError("full")]

    def save_after_failures(folder, saved):
        if failures:
            raise failures.pop()
        real(folder, saved)

    monkeypatch.setattr(store, "save_checkpoint", save_after_failures)
    saver = checkpointing(tmp_path, 5)
    saver.write(snapshot(1), [tmp_path / "best", step_folder(tmp_path, 1)])
    saver.write(snapshot(2), [step_folder(tmp_path, 2)])
    saver.wait()
    assert load_checkpoint(tmp_path / "best").state == {"step": 1}  # as it was when it was the best
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_00000002"]
    # One that has been surpassed meanwhile is not tried again.
    failures.append(SaveError("full"))
    saver.write(snapshot(3), [tmp_path / "best"])
    saver.write(snapshot(4), [tmp_path / "best"])
    saver.wait()
    assert load_checkpoint(tmp_path / "best").state == {"step": 4}


def test_a_best_is_told_once_it_is_whole(tmp_path):
    told = []
    saver = checkpointing(
        tmp_path, 5, best_saved=lambda folder: told.append((folder, load_checkpoint(folder).state["step"]))
    )
    saver.write(snapshot(1), [tmp_path / "best", step_folder(tmp_path, 1)])
    saver.write(snapshot(2), [step_folder(tmp_path, 2)])
    (tmp_path / "file").write_text("")
    saver.write(snapshot(3), [tmp_path / "file" / "best"])
    saver.wait()
    assert told == [(tmp_path / "best", 1)]


def test_what_is_no_matter_of_the_disk_is_raised_where_it_is_waited_for(tmp_path, disk):
    saver = checkpointing(tmp_path, 5)
    disk.errors.append(TypeError("not JSON"))
    disk.write()
    saver.write(snapshot(1), [tmp_path / "one"])
    with pytest.raises(TypeError, match="not JSON"):
        saver.wait()
    saver.wait()


def test_the_newest_numbered_folders_are_kept_and_no_other_has_a_part_in_that(tmp_path):
    saver = checkpointing(tmp_path, 2)
    for step in range(1, 5):
        saver.write(snapshot(step), [step_folder(tmp_path, step), tmp_path / "best"])
    saver.wait()
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000003", "step_00000004", "best"}
    assert load_checkpoint(tmp_path / "best").state == {"step": 4}
    # Of a folder that is saved beside numbered ones, none of those is removed.
    shutil.copytree(tmp_path / "step_00000003", tmp_path / "step_00000002")
    saver.write(snapshot(9), [tmp_path / "best"])
    saver.wait()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_00000002", "step_00000003", "step_00000004"]


def test_the_one_before_goes_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    saver = checkpointing(tmp_path, 1)
    saver.write(snapshot(1), [step_folder(tmp_path, 1)])
    saver.wait()

    def refuse(folder, saved):
        raise SaveError("The disk is full.")

    monkeypatch.setattr(store, "save_checkpoint", refuse)
    saver.write(snapshot(2), [step_folder(tmp_path, 2)])
    saver.wait()
    assert failure_of(saver) == "The disk is full."
    assert load_checkpoint(step_folder(tmp_path, 1)).state == {"step": 1}


def test_a_best_that_cannot_be_written_costs_no_checkpoint(tmp_path, monkeypatch):
    real = store.save_checkpoint

    def full_for_best(folder, snapshot):
        if folder.name == "best":
            raise SaveError("best is full")
        real(folder, snapshot)

    monkeypatch.setattr(store, "save_checkpoint", full_for_best)
    saver = checkpointing(tmp_path, 5)
    step = tmp_path / "checkpoints" / "step_00000007"
    saver.write(Snapshot(weights={}, moments={}, prompts={}, state={"step": 7}), [tmp_path / "best", step])
    saver.wait()
    assert failure_of(saver) == "best is full"
    assert load_checkpoint(step).state == {"step": 7}


def test_a_process_that_does_not_write_takes_part_at_the_same_steps_and_leaves_no_file(tmp_path):
    first, other = (Checkpointing(tmp_path / name, OutputConfig(save_every=2)) for name in ("first", "other"))
    taken = []

    def take(step, value):
        taken.append(step)
        return value

    for step in range(1, 5):
        first.best_is_new = other.best_is_new = step == 3
        for saver, value in ((first, snapshot(step)), (other, None)):
            saver.save(step, lambda step=step, value=value: take(step, value), now=False)
    first.finish()
    other.finish()
    assert taken == [2, 2, 3, 3, 4, 4]
    assert first.saved_step == other.saved_step == 4
    assert [folder.name for folder in checkpoints(tmp_path / "first" / "checkpoints")] == [
        *("step_00000002", "step_00000004"),
    ]
    assert load_checkpoint(tmp_path / "first" / "best").state == {"step": 3}
    assert not (tmp_path / "other").exists()
