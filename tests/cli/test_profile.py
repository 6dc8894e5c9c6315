"""`launch/train.py --profile`, in this process."""

import json
import runpy
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "launch" / "train.py"


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(PROGRAM))["main"]


@pytest.mark.slow
def test_a_profiled_run_ends_well_and_names_its_profile(main, clean_process, tiny_flags, tmp_path, capsys):
    folder = tmp_path / "run"
    assert (
        main([*tiny_flags, "--max_batches=4", "--save_every=100", "--output_dir", str(folder), "--profile", "2"]) == 0
    )
    assert [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert {path.name for path in (folder / "profile").iterdir()} == {"trace.json.gz", "table.txt"}
    shown = capsys.readouterr().err
    assert "Recorded: 2 steps. To warm up: 2.\n" in shown
    assert shown.index("where a step's time goes") < shown.index("\nprofile ") < shown.index("\ncheckpoints ")
    assert "where a step's time goes" in (folder / "training.log").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--profile", "0"], "--profile is '0': choose a whole number of at least 1."),
        (["--profile", "-3"], "--profile is '-3': choose a whole number of at least 1."),
        (["--profile", "some"], "--profile is 'some': choose a whole number of at least 1."),
        (
            ["--profile", "3", "--dry_run"],
            "--profile writes into a run folder, and --dry_run has none: give one of them.",
        ),
    ],
)
def test_mistakes_are_told_in_a_line_and_leave_no_folder(main, monkeypatch, tmp_path, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert capsys.readouterr() == ("", f"train.py: {message}\n")
    assert list(tmp_path.iterdir()) == []
