"""launch/report.py as a user starts it."""

import re
import runpy
from pathlib import Path

import pytest
from shared.made_runs import make_run

from arcdist.analysis import report

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
main = runpy.run_path(str(LAUNCH / "report.py"))["main"]


@pytest.fixture(autouse=True)
def one_panel(monkeypatch):
    """Eight take longer, and are drawn in tests/analysis."""
    monkeypatch.setattr(report, "PANELS", dict([*report.PANELS.items()][:1]))


def test_it_writes_the_page_and_says_where(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "mine", epochs=1, shown=1)
    assert main(["mine", "--output", "page.html"]) == 0
    assert re.fullmatch(r"The report of mine: page\.html \(\d\.\d MB\)\n", capsys.readouterr().out)
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], "is not a run folder"),
        ([], "The command line: the following arguments are required: RUN"),
        (["fresh"], "fresh holds no logged step yet"),
        (["mine", "--output", "no/such/page.html"], "no/such/page.html cannot be written (No such file or directory)"),
    ],
)
def test_mistakes_are_reported_in_one_line(tmp_path, capsys, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "fresh", epochs=0)
    if "mine" in argv:
        make_run(tmp_path / "mine", epochs=1, shown=1)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.startswith("report.py: ")
    assert len(captured.err.splitlines()) == 1
