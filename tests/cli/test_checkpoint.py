"""launch/checkpoint.py as a user starts it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def start(program: str, cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(LAUNCH / program), *argv],
        cwd=cwd,
        env={**os.environ, "HF_DATASETS_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_flags) -> Path:
    """A folder with a real run of three steps, `run`."""
    cwd = tmp_path_factory.mktemp("trained")
    run = start("train.py", cwd, *tiny_flags, "--max_batches", "3", "--output_dir", "run")
    assert run.returncode == 0, run.stderr
    return cwd


@pytest.fixture
def cwd(tmp_path, trained) -> Path:
    """A folder with that run, to be harmed."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path


@pytest.mark.slow
def test_list_shows_what_is_there_and_that_it_is_whole(trained):
    run = start("checkpoint.py", trained, "list", "run")
    assert (run.returncode, run.stderr) == (0, "")
    names = re.findall(r"^(\S+) +(\d) .* whole *$", run.stdout, re.MULTILINE)
    assert names == [("step_00000001", "1"), ("step_00000002", "2"), ("step_00000003", "3"), ("best", "3")]
    assert run.stdout.endswith("\n--resume goes on from step_00000003.\n")
    assert max(map(len, run.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_list_and_verify_name_what_is_broken_and_exit_with_2(cwd):
    weights = cwd / "run" / "checkpoints" / "step_00000003" / "weights.safetensors"
    os.truncate(weights, 100)
    listed = start("checkpoint.py", cwd, "list", "run")
    assert listed.returncode == 2
    assert re.search(r"^step_00000003 .* broken *$", listed.stdout, re.MULTILINE)
    assert re.search(r"^step_00000003: weights\.safetensors has 100 bytes in place of [\d,]+\.$", listed.stdout, re.M)
    assert listed.stderr == (
        "checkpoint.py: The newest checkpoint, step_00000003, is broken; --resume goes on from step_00000002.\n"
    )
    verified = start("checkpoint.py", cwd, "verify", "run/best", "run/checkpoints/step_00000003")
    assert verified.returncode == 2
    assert [line.partition(":")[0] for line in verified.stdout.splitlines()] == [
        "whole   run/best",
        "broken  run/checkpoints/step_00000003",
    ]
    assert verified.stderr == "checkpoint.py: Broken: 1 of 2. Resume from a whole one, and export that.\n"


@pytest.mark.slow
def test_export_makes_a_folder_once(cwd):
    made = start("checkpoint.py", cwd, "export", "run", "models/mine")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("Exported run/best, step 3, to models/mine:\n")
    folder = cwd / "models" / "mine"
    assert [path.name for path in (cwd / "models").iterdir()] == ["mine"]
    written = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}
    assert set(written) == {
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        *("agent.safetensors", "agent.json", "rest.safetensors", "config.yaml", "README.md"),
    }
    again = start("checkpoint.py", cwd, "export", "run", "models/mine")
    assert again.returncode == 2
    assert re.fullmatch(
        r"checkpoint\.py: models/mine exists and is not empty \(it holds \S+\): export to another folder\.\n",
        again.stderr,
    )
    assert written == {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}


@pytest.mark.slow
def test_what_is_no_run_is_told_in_a_line(tmp_path):
    run = start("checkpoint.py", tmp_path, "list", "nowhere")
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
def test_a_mistake_in_the_command_line_is_told_in_a_line(tmp_path, argv, message):
    run = start("checkpoint.py", tmp_path, *argv)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(f"checkpoint.py: The command line: {message}")
    assert run.stderr.count("\n") == 1


def test_help_names_the_commands(tmp_path):
    run = start("checkpoint.py", tmp_path, "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert re.findall(r"^    (\w+)  ", run.stdout, re.MULTILINE) == ["list", "verify", "export"]
