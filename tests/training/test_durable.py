import errno
import os

import pytest
from shared.rights import without_rights

from arcdist.errors import SaveError
from arcdist.training import durable
from arcdist.training.durable import force_to_disk, write_file, write_folder

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


def test_a_file_is_written_over(tmp_path):
    write_file(tmp_path / "a", b"long before")
    write_file(tmp_path / "a", b"short")
    force_to_disk(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"short"
