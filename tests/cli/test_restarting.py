"""launch/restarting.sh: what it hands to the launcher, and what to the program."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "restarting.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="a script for bash")
DEFAULTS = ["--config_file", "accelerate_configs/zero2.yaml", "--max_restarts", "3"]
PROGRAM = ["launch/train.py", "--output_dir", "runs/my night", "--resume", "auto"]


@pytest.fixture
def start(tmp_path):
    """Run the script with an `accelerate` that prints what it is given, an argument a line."""
    (tmp_path / "accelerate").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "accelerate").chmod(0o755)

    def run(*argv, **environment):
        return subprocess.run(
            ["bash", str(SCRIPT), *argv],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("given", "launcher", "program"),
    [
        ([], [], []),
        (["--"], [], []),
        (["--", "--recipe", "a b"], [], ["--recipe", "a b"]),
        (["--num_processes", "4"], ["--num_processes", "4"], []),
        (["--num_processes", "4", "--", "--seed", "--"], ["--num_processes", "4"], ["--seed", "--"]),
    ],
)
def test_what_is_before_the_dashes_is_the_launcher_s(start, given, launcher, program):
    run = start("runs/my night", *given)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == ["launch", *DEFAULTS, *launcher, *PROGRAM, *program]


def test_the_environment_names_another_file_and_number(start):
    run = start("runs/my night", CONFIG_FILE="my own.yaml", RESTARTS="9")
    assert run.stdout.splitlines()[1:5] == ["--config_file", "my own.yaml", "--max_restarts", "9"]


def test_without_a_run_folder_it_is_refused(start):
    run = start()
    assert run.returncode == 1
    assert run.stderr.endswith("the run folder, such as runs/night\n")


def test_no_array_is_ever_empty():
    """Bash 3.2, which macOS has, takes an empty one for one that is not set, and ends."""
    assert "=()" not in SCRIPT.read_text()
