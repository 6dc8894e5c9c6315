"""launch/train.py as a user starts it: mistakes, help, the printed configuration, runs of older versions."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from arcdist.checkpoint.state import config_of
from arcdist.checkpoint.store import load_checkpoint, save_checkpoint
from arcdist.config import load_config

CHECKOUT = Path(__file__).resolve().parents[2]


def train_py(*argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does, from any folder; stderr ends with whether torch was imported."""
    program = (
        "import runpy, sys\n"
        "try:\n"
        "    sys.argv[0] = sys.argv.pop(1)\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(CHECKOUT / "launch" / "train.py"), *argv],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], "train.py: There is no flag --epoch. Did you mean --epochs? --help lists them all.\n"),
        (["--epochs", "x"], "train.py: train.epochs is 'x' (the command line): choose a whole number.\n"),
        (["--epochs", "0"], "train.py: train.epochs is 0: choose at least 1. (train.epochs: flag)\n"),
    ],
)
def test_a_mistake_ends_with_one_message_and_exit_code_2(tmp_path: Path, argv: list[str], message: str) -> None:
    run = train_py(*argv, cwd=tmp_path)
    assert run.stderr == message
    assert run.stdout == ""
    assert run.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("RANK", "x", "RANK is 'x', and has to be a whole number from 0: "),
        ("WORLD_SIZE", "2", "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set: "),
        ("WANDB_PROJECT", "a/b", "tracking.wandb_project is a/b: choose 1 to 128 characters other than "),
    ],
)
def test_a_mistake_in_the_environment_ends_alike(tmp_path: Path, variable: str, value: str, message: str) -> None:
    run = train_py(cwd=tmp_path, **{variable: value})
    assert run.stderr.startswith(f"train.py: {message}")
    assert run.stderr.count("\n") == 1
    assert (run.returncode, run.stdout, list(tmp_path.iterdir())) == (2, "", [])


def test_print_config_shows_values_and_sources_and_loads_again(tmp_path: Path) -> None:
    environment = {"RANK": "", "WANDB_PROJECT": "mine", "WANDB_MODE": "offline"}
    first = train_py("--print_config", "--epochs", "3", cwd=tmp_path, **environment)
    assert (first.returncode, first.stderr) == (0, "")
    assert yaml.safe_load(first.stdout)["train"]["epochs"] == 3
    assert re.search(r"^  epochs: 3 +# flag$", first.stdout, re.MULTILINE)
    assert re.search(r"^  seed: 0 +# default$", first.stdout, re.MULTILINE)
    assert re.search(r"^  device: cpu +# recipe quickstart$", first.stdout, re.MULTILINE)
    assert re.search(r"^  wandb_project: mine +# WANDB_PROJECT$", first.stdout, re.MULTILINE)
    assert re.search(r"^  wandb: null +# WANDB_MODE=offline$", first.stdout, re.MULTILINE)

    (tmp_path / "mine.yaml").write_text(first.stdout)
    second = train_py("--print_config", "--config", "mine.yaml", cwd=tmp_path)
    assert yaml.safe_load(second.stdout) == yaml.safe_load(first.stdout)
    assert "# file mine.yaml" in second.stdout


def test_help(tmp_path: Path) -> None:
    run = train_py("--help", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: train.py [--recipe NAME]")


OLD_KEYS = {
    "qwen.numeric_in_dim": 15,
    "agent.num_colors": 10,
    "refiner.rl_feat_dim": 32,
    "refiner.rl_prompt_dim": 256,
    "refiner.rl_ctrl_dim": 256,
}


@pytest.mark.slow
def test_a_run_of_a_version_with_more_keys_resumes(tmp_path, tiny_flags):
    def train(*argv):
        return subprocess.run(
            [sys.executable, str(CHECKOUT / "launch" / "train.py"), *argv],
            cwd=tmp_path,
            env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    first = train(*tiny_flags, "--output_dir", "run")
    assert first.returncode == 0, first.stderr
    config_file, newest = tmp_path / "run" / "config.yaml", tmp_path / "run" / "checkpoints" / "step_00000002"
    document, snapshot = yaml.safe_load(config_file.read_text()), load_checkpoint(newest)
    state = json.loads(json.dumps(snapshot.state))
    for name, value in OLD_KEYS.items():
        section, leaf = name.split(".")
        document[section][leaf] = state["config"][name] = value
    config_file.write_text(yaml.safe_dump(document, sort_keys=False))
    save_checkpoint(newest, replace(snapshot, state=state))
    assert config_of(state) == load_config([*tiny_flags, "--output_dir", "run"]).config

    resumed = train("--resume", "run", "--epochs", "2")
    assert resumed.returncode == 0, resumed.stderr
    assert f"Resumed from {newest.relative_to(tmp_path)}: step 2" in " ".join(resumed.stderr.split())
    (line,) = [line for line in resumed.stderr.splitlines() if "no longer needed" in line]
    assert line.startswith("train.py: run/config.yaml: no longer needed, and ignored: ")
    assert all(line.count(name) == 1 for name in OLD_KEYS)
    assert not any(name.rpartition(".")[2] in config_file.read_text() for name in OLD_KEYS)
    assert len((tmp_path / "run" / "steps.jsonl").read_text().splitlines()) == 4
