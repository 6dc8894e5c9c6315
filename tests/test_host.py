"""The machine and the software that a run uses."""

import subprocess

import pytest
import torch

from arcdist import __version__
from arcdist import host as versions
from arcdist.host import memory_left, most_cores

GIB = 2**30


@pytest.fixture
def groups(tmp_path):
    """The two places to look at: a process in the group `job/step` of a machine that has written these files."""

    def make(files):
        root, of_process = tmp_path / "cgroup", tmp_path / "self"
        of_process.write_text("5:cpu:/elsewhere\n0::/job/step\n")
        (root / "job" / "step").mkdir(parents=True)
        for name, content in files.items():
            (root / name).write_text(content)
        return root, of_process

    return make


def test_without_limits_there_is_none(groups, tmp_path):
    places = groups({"job/cpu.max": "max 100000\n", "job/memory.max": "max\n", "job/memory.current": "5\n"})
    assert (most_cores(*places), memory_left(*places)) == (None, None)
    assert most_cores(tmp_path / "no", tmp_path / "where") is None


def test_the_narrowest_group_counts(groups):
    places = groups({"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "400000 100000\n"})
    assert most_cores(*places) == 1.5


def test_what_the_cache_holds_can_be_had(groups):
    places = groups(
        {
            "memory.max": f"{64 * GIB}\n",
            "memory.current": f"{60 * GIB}\n",
            "job/memory.max": f"{8 * GIB}\n",
            "job/memory.current": f"{7 * GIB}\n",
            "job/memory.stat": f"anon {4 * GIB}\ninactive_file {2 * GIB}\nactive_file {1 * GIB}\n",
        }
    )
    assert memory_left(*places) == 3 * GIB


def test_packages_that_are_there_are_named_with_their_version():
    found = versions.versions()
    assert found["arcdist"] == __version__
    assert found["torch"] == torch.__version__


def test_those_that_are_not_are_left_out(monkeypatch):
    monkeypatch.setattr(versions, "_PACKAGES", ("torch", "no-such-package"))
    assert list(versions.versions()) == ["torch"]


def test_a_commit_with_changes_is_marked(tmp_path, monkeypatch):
    (tmp_path / "arcdist").mkdir()
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "arcdist" / "versions.py"))
    assert versions.git_commit() is None

    def git(*command):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", "-C", tmp_path, *identity, *command], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert versions.git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert versions.git_commit() == git("rev-parse", "HEAD") + "+changes"
