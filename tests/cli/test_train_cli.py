import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]


def train_py(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
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


def test_print_config_shows_values_and_sources_and_loads_again(tmp_path: Path) -> None:
    first = train_py("--print_config", "--epochs", "3", cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert yaml.safe_load(first.stdout)["train"]["epochs"] == 3
    assert re.search(r"^  epochs: 3 +# flag$", first.stdout, re.MULTILINE)
    assert re.search(r"^  seed: 0 +# default$", first.stdout, re.MULTILINE)
    assert re.search(r"^  device: cpu +# recipe quickstart$", first.stdout, re.MULTILINE)

    (tmp_path / "mine.yaml").write_text(first.stdout)
    second = train_py("--print_config", "--config", "mine.yaml", cwd=tmp_path)
    assert yaml.safe_load(second.stdout) == yaml.safe_load(first.stdout)
    assert "# file mine.yaml" in second.stdout


def test_help(tmp_path: Path) -> None:
    run = train_py("--help", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: train.py [--recipe NAME]")
