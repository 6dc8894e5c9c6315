"""Runs that are logged again from their records, as training would log them."""

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from arcdist.analysis.record import RunRecord, read_run_folder
from arcdist.tracking import Mirrors, open_mirrors
from shared.made_runs import STEPS_PER_EPOCH


def without_accounts(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Leave W&B nothing of this machine: no key, no settings, no other server, no cache to write to."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(home / name.lower()))
    # Even if something goes wrong, no test asks a server on the network.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def log_steps(mirrors: Mirrors, record: RunRecord, steps: Iterable[int]) -> None:
    """Log some steps of a made run, with the epochs that end with them."""
    by_step = {step["step"]: step for step in record.steps}
    validations = {validation.step: validation for validation in record.validations}
    for step in steps:
        mirrors.log_step(by_step[step], ends_epoch=step % STEPS_PER_EPOCH == 0)
        if step % STEPS_PER_EPOCH == 0:
            epoch = record.epochs[step // STEPS_PER_EPOCH - 1]
            mirrors.log_epoch(step, epoch, validations.get(step), Path(record.place) / "metrics_plot.png")


def catch_up(mirrors: Mirrors, record: RunRecord, step: int) -> None:
    """Resume a made run after a step."""
    mirrors.catch_up(
        [one for one in record.steps if one["step"] <= step],
        record.epochs[: step // STEPS_PER_EPOCH],
        lambda: [one for one in record.validations if one.step <= step],
    )


def children() -> list[psutil.Process]:
    """The processes that this one has started and that still run; not the ranks that wait for runs of other tests."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            waits = any(argument.endswith("shared/rank.py") for argument in child.cmdline())
            if not waits and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for another process.

    Raises:
        TimeoutError: it does not.
    """
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("it took too long")
        time.sleep(0.05)


def main(source: Path, folder: Path, flags: list[str]) -> None:
    """Log the first half of a run, and wait to be killed."""
    from arcdist.config import load_config

    record = read_run_folder(source)
    mirrors = open_mirrors(folder, record.identity, load_config(flags).config, best_metric="val/exact")
    log_steps(mirrors, record, range(10, 71, 10))
    time.sleep(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
