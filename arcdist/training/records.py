"""What is logged of a run, from what its steps report."""

import math
from collections.abc import Mapping, Sequence

from arcdist.evaluation import Noted
from arcdist.tracking import MovingPace
from arcdist.tracking.validation import QueryResult, ShownQuery, Validation
from arcdist.training.step import StepReport

_PART_OF_GROUP = {"lora": "qwen", "prompt_projection": "qwen", "control_mlp": "qwen", "task_vectors": "agent"}


def step_record(means: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, float]:
    """Numbers of a log line: means over its steps, gradient norms by part, learning rates by group."""
    norms = {name: norm for name, norm in means.items() if name.startswith("grad_norm/")}
    parts = by_part({name.removeprefix("grad_norm/"): norm for name, norm in norms.items()})
    return {
        **{name: value for name, value in means.items() if name not in norms},
        **{f"grad_norm/{name}": norm for name, norm in parts.items()},
        **{f"lr/{name}": rate for name, rate in rates.items()},
    }


def epoch_record(means: Mapping[str, float], memory: Mapping[str, float]) -> dict[str, float]:
    """Numbers of an epoch: means over its steps, and what the solver's memory holds at its end."""
    return {
        "train/loss": means.get("loss", math.nan),
        **{name: value for name, value in means.items() if name.startswith(("train/", "efe/", "reward/"))},
        "pairs_per_s": means["pairs_per_s"],
        **{f"solver/{name}": value for name, value in memory.items()},
    }


def as_validation(noted: Sequence[Noted], *, epoch: int, step: int) -> Validation:
    """What a validation's book says, as it is kept."""
    return Validation(
        epoch=epoch,
        step=step,
        results={note.id: QueryResult(exact=note.exact, cell=note.cell, confidence=note.confidence) for note in noted},
        shown=tuple(
            ShownQuery(id=note.id, input=query, target=target, steps=tuple(steps), prediction=prediction)
            for note in noted
            if note.pictures
            for query, target, *steps, prediction in [[tuple(map(tuple, grid)) for grid in note.pictures]]
        ),
    )


def by_part(norms: Mapping[str, float]) -> dict[str, float]:
    """Norms of parameter groups as norms of the parts that users know: all of Qwen's groups are one."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        part = _PART_OF_GROUP.get(name, name)
        squares[part] = squares.get(part, 0.0) + norm**2
    return {part: math.sqrt(square) for part, square in squares.items()}


def judged(report: StepReport) -> dict[str, float]:
    """What has to be finite for a step to count."""
    return {"loss": report.metrics["loss"], **report.group_norms}


def not_finite(report: StepReport) -> str:
    """What of a step is not finite, and where it began as far as that is known."""
    bad = ", ".join(f"{name} = {value}" for name, value in judged(report).items() if not math.isfinite(value))
    ranks = ", ".join(map(str, report.not_finite_on))
    return f"{bad} (from rank {ranks})" if ranks else bad


def progress_note(report: StepReport, pace: MovingPace) -> str:
    """A step in the few words that stand beside the progress bar, the most important first."""
    return f"loss {report.metrics['loss']:.3g}, exact {report.metrics['train/exact']:.0%}, {pace}"


def epoch_summary(record: Mapping[str, float | int]) -> str:
    """An epoch in one line of the log."""
    shown = ("train/loss", "train/exact", "val/exact", "val/cell", "val/size", "val/accuracy_delta")
    return ", ".join(f"{name} {record[name]:.4f}" for name in shown if name in record)
