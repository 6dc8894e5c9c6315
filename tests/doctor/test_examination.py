import sys

import pytest

from arcdist.config import load_config
from arcdist.distributed import FailureWatch
from arcdist.doctor import DOCTOR, examine
from arcdist.errors import ConfigError, PlatformError

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture
def looked_at(tiny_flags, capsys, monkeypatch):
    """Examine what a tiny run needs; gives the table's first column."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*flags):
        loaded = load_config([*tiny_flags, *flags], DOCTOR)
        try:
            examine(loaded.config, FailureWatch(), fit="fit" in loaded.switches)
        finally:
            run.checks = [
                line[1:].split("  ")[0] for line in capsys.readouterr().out.splitlines() if line[1:2].isalpha()
            ]

    return run


def test_all_is_looked_at_in_order(looked_at):
    looked_at("--fit")
    assert looked_at.checks[:3] == ["check", "Python", "PyTorch"]
    assert looked_at.checks[-4:] == ["start", "all-reduce", "check", "longest batch"]


def test_a_contradiction_keeps_a_run_from_starting(looked_at, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match=r"^Failed: launch\. What to do stands in the table\.$"):
        looked_at("--train.precision=bf16")
    assert looked_at.checks[-1] == "tasks"


def test_a_start_that_fails_is_told(looked_at):
    with pytest.raises(ConfigError, match=r"^Failed: start\."):
        looked_at("--batch_size=2", "--train.accumulation=3", "--fit")
    assert looked_at.checks[-2:] == ["start", "longest batch"]


def test_without_a_library_nothing_else_is_looked_at(looked_at, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PlatformError, match=r"^Failed: peft\."):
        looked_at()
    assert looked_at.checks[-1] == "datasets"
