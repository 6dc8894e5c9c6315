"""The launcher files: each starts one process, without a word of the launcher's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "single_gpu"])
def test_a_launch_says_nothing_of_its_own(name: str) -> None:
    launcher = CHECKOUT / "accelerate_configs" / f"{name}.yaml"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launcher)),
            *(str(CHECKOUT / "launch" / "train.py"), "--print_config"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stderr == ""
    assert yaml.safe_load(run.stdout)["train"]["device"] == "cpu"
    assert run.returncode == 0
