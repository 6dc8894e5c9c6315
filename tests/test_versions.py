"""Which software a run is made with."""

import subprocess

import torch

from arcdist import __version__, versions


def test_packages_that_are_there_are_named_with_their_version():
    found = versions.versions()
    assert found["arcdist"] == __version__
    assert found["torch"] == torch.__version__


def test_those_that_are_not_are_left_out(monkeypatch):
    monkeypatch.setattr(versions, "_PACKAGES", ("torch", "no-such-package"))
    assert list(versions.versions()) == ["torch"]


def test_a_commit_with_changes_says_so(tmp_path, monkeypatch):
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
