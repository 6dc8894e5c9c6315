"""What a dry run shows: sizes, memory, pace and time; and that it leaves nothing."""

import re

import pytest

from arcdist.config import load_config
from arcdist.distributed import FailureWatch
from arcdist.errors import OutOfMemoryError
from arcdist.training.run import train


@pytest.fixture
def dry_run(clean_process, tiny_flags, tmp_path, monkeypatch, capsys):
    """The rows of the table that a dry run prints, by their names."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        train(load_config([*tiny_flags, "--dry_run", *flags]), FailureWatch())
        assert list(tmp_path.iterdir()) == []  # not even a run folder
        rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        return {row[0]: row[1] for row in rows if len(row) == 2}

    return run


def number(text):
    return float(re.match(r"[\d,.]+", text)[0].replace(",", ""))


def test_it_shows_sizes_memory_pace_and_time_and_writes_nothing(dry_run, build_tiny):
    rows = dry_run("--max_batches=5", "--epochs=120")
    assert rows["device"] == "cpu, precision no"

    models = build_tiny().models
    qwen = list(models.qwen.parameters())
    total, trained = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+\d", rows["Qwen parameters"]))
    assert total == sum(p.numel() for p in qwen)
    assert trained == sum(p.numel() for p in qwen if p.requires_grad)
    others = (models.agent, models.solver, models.efe, models.refiner)
    assert number(rows["agent, solver, EFE, refiner"]) == sum(p.numel() for m in others for p in m.parameters())

    assert 0.05 < number(rows["peak memory, longest batch included"]) < 64
    queries, tokens = (number(part) for part in re.findall(r"[\d,.]+ \w+/s", rows["pace"]))
    assert tokens > 10 * queries > 0
    # 5 steps of 4 queries at this pace, 120 times; one batch of an epoch is smaller.
    assert number(rows["an epoch of 5 steps"]) == pytest.approx(20 / queries, rel=0.3, abs=0.6)
    assert number(rows["120 epochs"]) == pytest.approx(120 * 20 / queries / 60, rel=0.3, abs=0.1)


def test_running_out_of_memory_is_explained_as_in_a_run(dry_run, tmp_path):
    width = 2**50
    with pytest.raises(OutOfMemoryError, match="--dry_run shows the peak"):
        dry_run(f"--qwen.prompt_dim={width}")
    assert list(tmp_path.iterdir()) == []
