import errno
import os
import shutil
from pathlib import Path

import pytest

from arcdist.training.write_error import unwritable


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
