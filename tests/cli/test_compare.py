"""launch/compare.py as a user starts it."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared.made_runs import make_run

PROGRAM = Path(__file__).resolve().parents[2] / "launch" / "compare.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with three runs; `empty` and `notes` are none that can be compared."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "base", epochs=2)
    make_run(folder / "other", flags=("--seed", "1", "--optim.agent_lr", "1e-2"), skill=0.6, epochs=2)
    make_run(folder / "old", flags=("--seed", "2"), epochs=1)
    make_run(folder / "empty", flags=("--seed", "3"), epochs=0)
    shutil.rmtree(folder / "old" / "validation")
    for name in ("steps.jsonl", "metrics.json"):
        path = folder / "old" / name
        path.write_text(path.read_text().replace('"time/', '"was/'))
    (folder / "notes").mkdir()
    (folder / "other" / "wandb").mkdir()
    return folder


@pytest.fixture
def compare(runs, monkeypatch, capsys):
    """Call the program in the folder of the runs: exit code, output, errors."""
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "80")
    main = runpy.run_path(str(PROGRAM))["main"]

    def call(*argv):
        code = main(argv)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_two_runs_are_compared_and_nothing_is_written(compare, runs):
    before = sorted(runs.rglob("*"))
    code, out, err = compare("base", "other")
    assert (code, err) == (0, "")
    assert re.search(r"^optim\.agent_lr +0\.003 +0\.01$", out, re.M)
    assert re.search(r"^B \(other\) is better than A \(base\): ", out, re.M)
    assert sorted(runs.rglob("*")) == before


def test_files_are_written_where_asked_for(compare, tmp_path):
    folder = tmp_path / "a" / "b"
    code, out, err = compare("base", "other", "old", "--output_dir", str(folder))
    assert (code, err) == (0, "")
    names = ["compare.html", "curves.png", "efe_terms.png", "compare.json"]
    assert re.findall(r"^Written: (.*)$", out, re.M) == [str(folder / name) for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    stored = json.loads((folder / "compare.json").read_text())
    # What an old run lacks is a dash.
    assert stored["cost"]["device_hours"]["C"] is None
    assert re.search(r"^device-hours +\S+ +\S+ +–$", out, re.M)
    assert "C (old) has no validation by queries and is left out of the verdict." in out


def test_what_can_be_read_is_compared_and_the_rest_reported_at_the_end(compare, tmp_path):
    code, out, err = compare("base", "nowhere", "other", "empty", "--output_dir", str(tmp_path / "out"))
    assert code == 2
    assert "B (other) is better than A (base)" in out
    assert err == (
        "compare.py: nowhere: there is no such folder. Give that of a run, such as runs/NAME.\n"
        "empty holds no logged step yet: wait until the run has made --output.log_every steps.\n"
    )
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())["left_out"]) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["base"], "One run is no comparison: name at least two."),
        (["base", "./base"], "./base is the same run as base ("),
        (["base", "nowhere"], "nowhere: there is no such folder. Give that of a run, such as runs/NAME."),
        (["base", "empty"], "empty holds no logged step yet"),
        (["base", "other", "--output_dir", "base/config.yaml"], "The output folder base/config.yaml cannot be written"),
        (["base", "other/wandb"], "other/wandb is a part of a run: name the run's folder, other."),
        (["base", "other", "--wandb"], "--wandb "),
        ([], "The command line: the following arguments are required: RUN. `compare.py --help` says what there is."),
        (["base", "other", "--all"], "The command line: unrecognized arguments: --all."),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Pydantic V1 style.*:DeprecationWarning")
def test_a_mistake_is_reported_in_a_line_before_anything_is_done(compare, argv, message):
    code, out, err = compare(*argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"compare.py: {message}")
    assert err.count("\n") == 1


def test_the_program_starts_by_itself(tmp_path):
    run = subprocess.run(
        [sys.executable, str(PROGRAM), "--help"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert set(re.findall(r"^  (--\w+)", run.stdout, re.M)) == {"--output_dir", "--wandb"}


def test_its_tables_may_go_to_a_reader_who_has_seen_enough_and_its_files_are_written(runs, tmp_path):
    run = subprocess.Popen(
        [sys.executable, str(PROGRAM), "base", "other", "old", "--output_dir", str(tmp_path / "out")],
        cwd=runs,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run.stdout.close()
    assert run.stderr.read() == ""
    run.stderr.close()
    assert run.wait(timeout=120) == 141
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("compare.html", "compare.json", "curves.png", "efe_terms.png"),
    }
