"""launch/bench.py as a user starts it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "launch" / "bench.py"


def bench(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *argv],
        cwd=cwd,
        env={**os.environ, "HF_DATASETS_CACHE": str(cwd / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_it_prints_pace_memory_and_shares_and_leaves_nothing(tmp_path, tiny_flags):
    run = bench(tmp_path, *tiny_flags, "--steps", "3")
    assert run.returncode == 0, run.stderr
    assert "3 steps of 4" in run.stdout
    assert re.search(r"device +1 × cpu, precision no", run.stdout)
    assert re.search(r"pace +[\d.]+ queries/s, [\d,]+ tokens/s", run.stdout)
    assert re.search(r"peak memory of a process +[\d.]+ GiB", run.stdout)
    assert re.search(r"float32 products, measured +[\d.e-]+ TFLOP/s a device", run.stdout)
    share = re.search(r"TFLOP/s a device, ([\d.]+)% of that", run.stdout)
    assert share is not None
    assert 0.0 < float(share[1]) < 100.0
    assert re.search(r"copy for a checkpoint +[\d.]+ s, [\d.]+ MB: [\d.]+% of each 1 steps", run.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "bench.py: --steps is '0': choose a whole number of at least 1.\n"),
        (["--steps", "many"], "bench.py: --steps is 'many': choose a whole number of at least 1.\n"),
        (["--dry_run"], "bench.py: There is no flag --dry_run. --help lists them all.\n"),
    ],
)
def test_wrong_flags_are_reported_in_a_line(tmp_path, argv, message):
    run = bench(tmp_path, *argv)
    assert run.returncode == 2
    assert run.stderr == message
    assert run.stdout == ""
