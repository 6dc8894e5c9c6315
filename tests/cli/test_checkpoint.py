"""launch/checkpoint.py as a user starts it."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def start(monkeypatch, capsys):
    """Call the program in a folder: exit code, output, errors."""
    main = runpy.run_path(str(LAUNCH / "checkpoint.py"))["main"]
    monkeypatch.setenv("COLUMNS", "80")

    def call(cwd, *argv):
        monkeypatch.chdir(cwd)
        code = main(argv)
        told = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=told.out, stderr=told.err)

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_flags) -> Path:
    """A folder with a real run of three steps, `run`."""
    cwd = tmp_path_factory.mktemp("trained")
    run = subprocess.run(
        [sys.executable, str(LAUNCH / "train.py"), *tiny_flags, "--max_batches", "3", "--output_dir", "run"],
        cwd=cwd,
        env={**os.environ, "HF_DATASETS_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return cwd


@pytest.fixture
def cwd(tmp_path, trained) -> Path:
    """A folder with that run, to be harmed."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path


@pytest.mark.slow
def test_list_shows_what_is_there_and_that_it_is_whole(start, trained):
    run = start(trained, "list", "run")
    assert (run.returncode, run.stderr) == (0, "")
    names = re.findall(r"^(\S+) +(\d) .* whole *$", run.stdout, re.MULTILINE)
    assert names == [("step_00000001", "1"), ("step_00000002", "2"), ("step_00000003", "3"), ("best", "3")]
    assert run.stdout.endswith("\n--resume continues from step_00000003.\n")
    assert max(map(len, run.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_list_and_verify_name_what_is_broken_and_exit_with_2(start, cwd):
    weights = cwd / "run" / "checkpoints" / "step_00000003" / "weights.safetensors"
    os.truncate(weights, 100)
    listed = start(cwd, "list", "run")
    assert listed.returncode == 2
    assert re.search(r"^step_00000003 .* broken *$", listed.stdout, re.MULTILINE)
    assert re.search(r"^step_00000003: weights\.safetensors has 100 bytes in place of [\d,]+\.$", listed.stdout, re.M)
    assert listed.stderr == (
        "checkpoint.py: The newest checkpoint, step_00000003, is broken; --resume continues from step_00000002.\n"
    )
    verified = start(cwd, "verify", "run/best", "run/checkpoints/step_00000003")
    assert verified.returncode == 2
    assert [line.partition(":")[0] for line in verified.stdout.splitlines()] == [
        "whole   run/best",
        "broken  run/checkpoints/step_00000003",
    ]
    assert verified.stderr == "checkpoint.py: Broken: 1 of 2. Resume from a whole one, and export that.\n"


@pytest.mark.slow
def test_export_makes_a_folder_once(start, cwd):
    made = start(cwd, "export", "run", "models/mine")
    assert (made.returncode, made.stderr) == (0, "")
    folder = cwd / "models" / "mine"
    listed = r"(  \S+, [\d.,]+ (bytes|kB|MB)\n){8}"
    assert re.fullmatch(rf"Exported run/best, step 3, to models/mine:\n{listed}", made.stdout)
    assert [path.name for path in (cwd / "models").iterdir()] == ["mine"]
    written = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}
    assert set(written) == {
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        *("agent.safetensors", "agent.json", "trained.json", "rest.safetensors", "config.yaml", "README.md"),
    }
    again = start(cwd, "export", "run", "models/mine")
    assert again.returncode == 2
    assert re.fullmatch(
        r"checkpoint\.py: models/mine exists and is not empty \(it holds \S+\): export to another folder\.\n",
        again.stderr,
    )
    assert written == {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}


def test_what_is_no_run_is_told_in_a_line(start, tmp_path):
    run = start(tmp_path, "list", "nowhere")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == "checkpoint.py: nowhere: there is no such folder. Give that of a run, such as runs/NAME.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND. `checkpoint.py --help` says what there is."),
        (["list"], "the following arguments are required: RUN. `checkpoint.py list --help` says what there is."),
        (["export", "run"], "the following arguments are required: FOLDER. `checkpoint.py export --help` says what"),
        (["lists", "run"], "argument COMMAND: invalid choice: 'lists' (choose from"),
        (["list", "run", "--all"], "unrecognized arguments: --all. `checkpoint.py --help` says what there is."),
    ],
)
def test_a_mistake_in_the_command_line_is_told_in_a_line(start, tmp_path, argv, message):
    run = start(tmp_path, *argv)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(f"checkpoint.py: The command line: {message}")
    assert run.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_whose_best_one_is_cut_off_is_listed_verified_and_exported(start, cwd):
    (cwd / "run" / "best").rename(cwd / "run" / ".best.replaced")
    told = "run/best: its replacement was cut off, or continues: run/.best.replaced is read, and --resume puts it back."
    listed = start(cwd, "list", "run")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert re.search(r"^best +3 .* whole *$", listed.stdout, re.MULTILINE)
    assert told in listed.stdout.splitlines()
    verified = start(cwd, "verify", "run/best")
    assert (verified.returncode, verified.stderr) == (0, "")
    made = start(cwd, "export", "run", "mine")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith(f"{told}\nExported run/best, step 3, to mine:\n")
    assert not (cwd / "run" / "best").exists()


def test_help_names_the_commands_from_any_folder(tmp_path):
    run = subprocess.run(
        [sys.executable, str(LAUNCH / "checkpoint.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert re.findall(r"^    (\w+)  ", run.stdout, re.MULTILINE) == ["list", "verify", "export"]
