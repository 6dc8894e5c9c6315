"""What a run tells of itself while it trains: its numbers on disk, in W&B and TensorBoard, and in the log."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from arcdist.evaluation import Prediction, Predictions, Predictor, score
from arcdist.tracking import Mirrors, MovingPace, Record, TrainingMetricsTracker
from arcdist.tracking.metrics import QueryResult, ShownQuery, Validation
from arcdist.training.loop_state import LoopState
from arcdist.training.session import Session
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


def as_validation(noted: Sequence[Prediction], *, epoch: int, step: int) -> Validation:
    """A validation as it is stored."""
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


class ValidationResult(NamedTuple):
    """What a validation gives."""

    scores: dict[str, float]
    """Means over the queries, as they are logged."""
    answers: Predictions
    """Of this process; it reads those of all."""


def predictor_of(session: Session) -> Predictor:
    """What answers with a run's models; the averaged agent, where an average is kept."""
    models = session.models
    return Predictor(
        read=session.engines.qwen,
        qwen=models.qwen,
        agent=models.averaged_agent.module,
        solver=models.solver,
        refiner=models.refiner,
    )


def validate(session: Session) -> ValidationResult:
    """Score the models on all validation queries; those that stand in for none count nowhere.

    All processes call it together.
    """
    shown, steps = session.config.tracking.shown_queries, session.config.agent.max_steps
    predictions = Predictions(session.validation.ids, shown, steps, session.device)
    shares = (
        (queries, not share.is_padding)
        for batch in session.validation.loader(0, session.device)
        for queries, share in zip(batch.queries, batch.shares, strict=True)
    )
    with session.engines.autocast():
        return ValidationResult(score(predictor_of(session), shares, predictions), predictions)


_logger = logging.getLogger(__name__)


class MetricsLogger:
    """Keeps the numbers of steps and epochs. Every process calls it with the same; process 0 alone writes and shows.

    Args:
        session: of the run.
        folder: of the run.
        state: of the run, which the numbers are taken from.
    """

    def __init__(self, session: Session, folder: Path, state: LoopState) -> None:
        self.tracker = TrainingMetricsTracker(folder, session.config.output.best_metric, writes=session.is_main)
        self.mirrors = Mirrors(())
        self._session = session
        self._state = state

    def show_in(self, mirrors: Mirrors) -> None:
        """Show the run there from now on, and what stands in its folder already."""
        self.mirrors = mirrors
        if not mirrors:
            return
        steps = self.tracker.steps
        # The step after which the epoch was not ended yet is shown with the epoch's numbers.
        waiting = [steps.pop()] if self._state.ends_epoch and steps and steps[-1]["step"] == self._state.step else []
        mirrors.catch_up(steps, self.tracker.epochs, self.tracker.validations)
        for record in waiting:
            mirrors.log_step(record, ends_epoch=True)

    def show_best(self, folder: Path) -> None:
        """Show a new best checkpoint, where that is asked for."""
        if self._session.config.tracking.upload_best:
            self.mirrors.log_best(folder)

    def log_steps(self) -> None:
        """Keep the means over the steps since the last line.

        Raises:
            NotFiniteError: the mean loss is NaN or infinite.
        """
        state = self._state
        means = state.since_log.means()
        flags = state.health.observe(
            state.step,
            loss=means["loss"],
            reward=means["reward/mean"],
            accuracy_delta=means["reward/d_acc"],
            gradient_norms=by_part(state.since_log.largest_norms),
        )
        record = step_record(means, self._session.engines.learning_rates())
        self._keep(
            {
                "step": state.step,
                "epoch": state.epoch,
                **record,
                "size_weight": state.size_weight,
                "memory_threshold": state.memory_gate.threshold,
                "skipped_steps": state.skipped,
                **state.cost.record(),
                "flags": flags,
            }
        )
        _logger.info(
            "step %d: EFE loss %.4f, reward %+.4f, Qwen gradient norm %.2e, mask ratio %.3f, %.0f queries/s",
            state.step,
            means["efe/total"],
            means["reward/mean"],
            record["grad_norm/qwen"],
            means["mask_ratio"],
            means["pairs_per_s"],
        )

    def log_flags(self) -> None:
        """Keep the flags that are up, of a run that ends over one."""
        self._keep({"step": self._state.step, "epoch": self._state.epoch, "flags": self._state.health.flags})

    def log_epoch(self, validated: ValidationResult | None) -> bool:
        """Keep the epoch that ends, and its validation if it had one; whether its models are the best so far."""
        state = self._state
        memory = self._session.models.solver.statistics()
        with state.cost.of_tracking():
            validation = (
                as_validation(validated.answers.read(), epoch=state.epoch, step=state.step) if validated else None
            )
        record: dict[str, float | int] = {
            "epoch": state.epoch,
            "step": state.step,
            **epoch_record(state.since_epoch.means(), memory),
            **(validated.scores if validated else {}),
            **state.cost.record(),
        }
        with state.cost.of_tracking():
            if validation is not None:
                self.tracker.log_validation(validation)
            is_best = self.tracker.log_epoch(record) and validation is not None
            self.mirrors.log_epoch(state.step, record, validation, self.tracker.draw())
        _logger.info("epoch %d: %s", state.epoch, epoch_summary(record))
        return is_best

    def _keep(self, record: Record) -> None:
        with self._state.cost.of_tracking():
            self.tracker.log_step(record)
            self.mirrors.log_step(record, ends_epoch=self._state.ends_epoch)
