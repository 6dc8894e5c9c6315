"""Run folders with numbers that are made up, written as a run writes them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arcdist.config import load_config, save_config
from arcdist.config.keys import flatten
from arcdist.tracking.metrics import QueryResult, Rows, ShownQuery, TrainingMetricsTracker, Validation, write_validation
from arcdist.tracking.run_folder import Identity, group_of, write_identity

TERMS = ("risk", "ambiguity", "step", "consistency", "bidirectional", "z_learning", "prompt")
STEPS_PER_EPOCH = 40
LOG_EVERY = 10


def make_run(
    folder: Path,
    *,
    flags: tuple[str, ...] = (),
    epochs: int = 3,
    queries: int = 40,
    skill: float = 0.2,
    pace: float = 100.0,
    processes: int = 1,
    shown: int = 4,
) -> Path:
    """A run folder as a run of some epochs would leave it.

    Args:
        folder: to make.
        flags: of the command line; the seed among them seeds the made-up numbers.
        epochs: that have ended.
        queries: of each validation, two a task.
        skill: share of the queries that are exact in the last epoch.
        pace: training queries a second.
        processes: of the run.
        shown: queries whose grids are kept.
    """
    config = load_config(["--recipe", "quickstart", "--epochs", str(max(1, epochs)), *flags]).config
    random = np.random.default_rng(config.train.seed)
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    data = {"training": "0" * 32, "validation": "1" * 32}
    write_identity(
        folder,
        Identity(
            id=f"{random.integers(16**8):08x}",
            name=folder.name,
            group=group_of(json.loads(json.dumps(flatten(config))), data),
            recipe="quickstart",
            source=config.data.source,
            data=data,
            device="cpu",
            processes=processes,
            zero_stage=None,
            started="2026-01-02T03:04:05+00:00",
            git_commit="0123456789abcdef0123456789abcdef01234567",
            versions={"arcdist": "0.1.0", "torch": "2.13.0"},
        ),
    )
    tracker = TrainingMetricsTracker(folder)
    # The same queries are the easy ones in every run, as with real puzzles.
    difficulty = np.random.default_rng(1).permutation(queries) / queries
    names = [f"{task:08x}:test:{pair}" for task in range(queries // 2) for pair in range(2)]
    for epoch in range(epochs):
        for step in range(epoch * STEPS_PER_EPOCH + LOG_EVERY, (epoch + 1) * STEPS_PER_EPOCH + 1, LOG_EVERY):
            tracker.log_step(_step(step, epoch, random, pace, processes))
        ability = skill * (epoch + 1) / epochs + 0.05 * random.standard_normal(queries)
        results = {
            name: QueryResult(
                exact=bool(hard < able),
                cell=1.0 if hard < able else float(0.6 + 0.3 * random.random()),
                confidence=float(random.uniform(0.3, 0.99)),
            )
            for name, hard, able in zip(names, difficulty, ability, strict=True)
        }
        step = (epoch + 1) * STEPS_PER_EPOCH
        tracker.log_epoch(_epoch(epoch, results, _step(step, epoch, random, pace, processes)))
        examples = tuple(_shown(name, results[name].exact) for name in names[:shown])
        write_validation(folder, Validation(epoch=epoch, step=step, results=results, shown=examples))
    tracker.draw()
    return folder


def _step(step: int, epoch: int, random: np.random.Generator, pace: float, processes: int) -> dict[str, Any]:
    loss = 3.0 * math.exp(-step / 60) + 0.5 + 0.05 * random.standard_normal()
    elapsed = step * 32 / pace
    return {
        "step": step,
        "epoch": epoch,
        "loss": loss,
        **{f"efe/{term}": (index + 1) * 0.1 * loss for index, term in enumerate(TERMS)},
        "efe/total": 2.8 * loss,
        "size_loss": 0.3 * loss,
        "reward/mean": 0.05 + 0.02 * random.standard_normal(),
        "reward/d_acc": 0.001 * random.standard_normal(),
        "train/exact": max(0.0, 0.3 - 0.3 * math.exp(-step / 60)),
        "train/cell": 0.8,
        "solver/confidence": 0.2,
        "grad_norm/qwen": 0.1 * loss,
        "grad_norm/agent": 0.5 * loss,
        "lr/qwen": 1e-3,
        "pairs_per_s": pace * (1 + 0.02 * random.standard_normal()),
        "tokens_per_s": 300 * pace,
        "time/elapsed_s": elapsed,
        "time/device_hours": elapsed * processes / 3600,
        "skipped_steps": 0,
        "flags": [],
    }


def _epoch(epoch: int, results: Mapping[str, QueryResult], step: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("efe/", "reward/", "train/", "time/")
    return {
        "epoch": epoch,
        "step": step["step"],
        "train/loss": step["loss"],
        **{name: value for name, value in step.items() if name.startswith(kept)},
        "pairs_per_s": step["pairs_per_s"],
        "solver/size": 10 * (epoch + 1),
        "val/exact": sum(result.exact for result in results.values()) / len(results),
        "val/cell": sum(result.cell for result in results.values()) / len(results),
        "val/size": 0.95,
        "val/accuracy_delta": 0.001,
        "floor/copy_exact": 0.0,
        "floor/copy_cell": 0.52,
    }


def _shown(name: str, exact: bool) -> ShownQuery:
    target: Rows = ((1, 2, 3), (4, 5, 6))
    wrong: Rows = ((1, 2, 3), (4, 5, 0))
    return ShownQuery(
        id=name,
        input=((0, 0), (7, 8), (9, 0)),
        target=target,
        steps=(((0, 0, 0), (0, 0, 0)), wrong, target if exact else wrong),
        prediction=target if exact else wrong,
    )
