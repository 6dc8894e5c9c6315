"""What is written is found whole or not at all, and what could not be written says why."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from shared.rights import without_rights

from arcdist import files as durable
from arcdist.errors import ConfigError, SaveError
from arcdist.files import expanded, fill_folder, replacing, unwritable, write_folder


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/runs/a") == tmp_path / "runs" / "a"
    assert expanded(Path("runs/~a")) == Path("runs/~a")


def test_nobody_s_home_folder_is_one_message():
    with pytest.raises(ConfigError, match=r"~nobody-here/a: ~nobody-here is nobody's home folder .* \./~nobody-here"):
        expanded("~nobody-here/a")


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """A disk with 1.5 MB to spare."""
    usage = shutil.disk_usage("/")._replace(free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def told(number, place, filename=None, **choices):
    error = OSError(number, os.strerror(number), filename)
    return unwritable(f"The checkpoint {place}", place, error, 6_100_000, **choices)


CHOICES = {"for_room": "lower --output.keep_last", "elsewhere": "export to another folder"}


def test_a_full_disk_is_told_what_is_needed_and_what_is_free(tmp_path):
    assert told(errno.ENOSPC, tmp_path / "a", **CHOICES) == (
        f"The checkpoint {tmp_path}/a could not be written (No space left on device): it needs 6.1 MB, and 1.5 MB are "
        f"free there. Make room, or lower --output.keep_last, or export to another folder."
    )


def test_a_limit_on_a_file_s_size_is_not_met_by_room(tmp_path):
    assert told(errno.EFBIG, tmp_path / "a", **CHOICES) == (
        f"The checkpoint {tmp_path}/a could not be written (File too large): it needs 6.1 MB. "
        f"Raise the limit on a file's size (ulimit -f)."
    )


def test_a_quota_is_not_what_is_free_on_the_disk(tmp_path):
    assert told(errno.EDQUOT, tmp_path / "a") == (
        f"The checkpoint {tmp_path}/a could not be written (Disk quota exceeded): it needs 6.1 MB. Make room."
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_where_a_right_is_missing_no_room_is_asked_for(tmp_path, number):
    assert told(number, tmp_path / "a", str(tmp_path / "a"), **CHOICES) == (
        f"The checkpoint {tmp_path}/a could not be written ({os.strerror(number)}). "
        f"See who may write there, or export to another folder."
    )


@pytest.mark.parametrize("name", ["a", ".a.partial", ".a.partial/state.json"])
def test_what_a_folder_is_called_until_it_is_whole_is_not_told(tmp_path, name):
    assert told(errno.EACCES, tmp_path / "a", str(tmp_path / name)).endswith(
        "/a could not be written (Permission denied). See who may write there."
    )


def test_another_path_than_the_target_is_named(tmp_path):
    text = told(errno.EACCES, tmp_path / "a", "/elsewhere")
    assert text.endswith("/a could not be written (Permission denied: /elsewhere). See who may write there.")


def test_of_a_folder_that_is_not_there_yet_the_one_above_says_what_is_free(tmp_path):
    text = told(errno.ENOSPC, tmp_path / "no" / "such" / "a")
    assert text.endswith("(No space left on device): it needs 6.1 MB, and 1.5 MB are free there. Make room.")


def test_any_other_error_is_told_as_it_is(tmp_path):
    text = told(errno.EIO, tmp_path / "a", **CHOICES)
    numbers = "it needs 6.1 MB, and 1.5 MB are free there"
    assert text.endswith(f"(Input/output error): {numbers}. See what is wrong there, or export to another folder.")


def test_an_error_without_a_number_is_told_in_its_own_words():
    text = unwritable("x", Path("x"), OSError("cut off"), 1)
    assert text == "x could not be written (cut off). See what is wrong there."


def test_a_disk_that_does_not_answer_is_no_second_error(tmp_path, monkeypatch):
    def fails(_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "disk_usage", fails)
    text = told(errno.ENOSPC, tmp_path / "a", **CHOICES)
    assert "(No space left on device): it needs 6.1 MB. Make room, or lower --output.keep_last, or export" in text


FILES = {"a/b": b"1", "c": b"2"}


def test_a_folder_appears_whole_even_in_place_of_an_empty_one(tmp_path):
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", FILES)
    assert (tmp_path / "empty" / "a" / "b").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["a", "c"]


def test_what_lies_beside_it_is_left_alone(tmp_path):
    (tmp_path / ".made.partial").mkdir()
    (tmp_path / ".made.partial" / "mine").write_text("x")
    write_folder(tmp_path / "made", FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".made.partial", "made"]
    assert (tmp_path / ".made.partial" / "mine").read_text() == "x"


def test_every_file_and_every_folder_is_forced_to_disk_and_the_name_last(tmp_path, monkeypatch):
    forced = []

    def note(descriptor):
        places = {path.stat().st_ino: path for path in tmp_path.rglob("*")}
        place = places[os.fstat(descriptor).st_ino]
        forced.append(place.relative_to(tmp_path).as_posix().rpartition(".partial")[-1])

    monkeypatch.setattr(durable.os, "fsync", note)
    write_folder(tmp_path / "new" / "made", FILES)
    assert sorted(forced[:2]) == ["/a/b", "/c"]
    assert sorted(forced[2:4]) == ["", "/a"]
    assert forced[4:] == ["new"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails_at", range(5))
def test_a_full_disk_or_an_end_leaves_nothing(tmp_path, monkeypatch, error, fails_at):
    calls = []

    def fails(descriptor):
        calls.append(descriptor)
        if len(calls) == fails_at + 1:
            raise error

    monkeypatch.setattr(durable.os, "fsync", fails)
    expected = SaveError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        write_folder(tmp_path / "made", {**FILES, "c": b"1234"})
    if expected is SaveError:
        assert "made could not be written (No space left on device): it needs 5 bytes, and" in str(raised.value)
        assert str(raised.value).endswith(" are free there. Make room, or export to another folder.")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_asks_for_no_room(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match=r"made could not be written \(Not a directory\)\. See what is wrong there, or"):
        write_folder(tmp_path / "file" / "made", FILES)


def test_where_nobody_may_write_that_is_what_is_told(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    here = (tmp_path / "shut").relative_to(tmp_path)
    here.mkdir()
    with without_rights(here), pytest.raises(SaveError) as raised:
        write_folder(here / "made", FILES)
    told = "shut/made could not be written (Permission denied). See who may write there, or export to another folder."
    assert str(raised.value) == told
    assert list(here.iterdir()) == []


def test_a_file_in_a_folder_is_written_over(tmp_path):
    for content in (b"long before", b"", b"short"):
        fill_folder(tmp_path, {"a": content})
        assert (tmp_path / "a").read_bytes() == content


def test_the_file_appears_whole_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("durable_file", "forced"), [(True, 1), (False, 0)])
def test_a_file_that_need_not_survive_a_loss_of_power_waits_for_no_disk(tmp_path, monkeypatch, durable_file, forced):
    calls = []
    monkeypatch.setattr(durable.os, "fsync", calls.append)
    with replacing(tmp_path / "file", durable=durable_file) as partial:
        partial.write_text("new")
    assert len(calls) == forced
    assert (tmp_path / "file").read_text() == "new"
