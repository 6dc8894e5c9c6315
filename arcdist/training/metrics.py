"""The numbers of a run: those of steps, epochs and validations, on disk, in W&B and TensorBoard, and in the log."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from arcdist.evaluation import Predictions, Predictor, score
from arcdist.tracking import Mirrors, Record, TrainingMetricsTracker
from arcdist.tracking.metrics import QueryResult, ShownQuery, Validation
from arcdist.training.loop_state import LoopState
from arcdist.training.session import Session

_logger = logging.getLogger(__name__)

_PART_OF_GROUP = {
    **dict.fromkeys(("lora", "prompt_projection", "control_mlp", "lm_head"), "qwen"),
    "task_vectors": "agent",
}
_SUMMARY = ("train/loss", "train/exact", "val/exact", "val/cell", "val/size", "val/accuracy_delta")


def norms_by_part(norms: Mapping[str, float]) -> dict[str, float]:
    """Norms of parameter groups as norms of the parts that users know: all of Qwen's groups are one."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        part = _PART_OF_GROUP.get(name, name)
        squares[part] = squares.get(part, 0.0) + norm**2
    return {part: math.sqrt(square) for part, square in squares.items()}


def predictor_of(session: Session) -> Predictor:
    """The models of a run that answer queries: the agent is the averaged one, if an average is kept."""
    models = session.models
    return Predictor(
        read=session.engines.qwen,
        qwen=models.qwen,
        agent=models.averaged_agent.module,
        solver=models.solver,
        refiner=models.refiner,
    )


def validate(session: Session, *, epoch: int, step: int) -> tuple[dict[str, float], Validation]:
    """Score the models on all validation queries; padding counts nowhere. All processes call it together.

    Returns the means over the queries, as they are logged, and how each query was answered.
    """
    shown, planning_steps = session.config.tracking.shown_queries, session.config.agent.max_steps
    predictions = Predictions(session.validation.queries.ids, shown, planning_steps, session.device)
    shares = (
        (queries, not share.is_padding)
        for batch in session.validation.loader(0, session.device)
        for queries, share in zip(batch.queries, batch.shares, strict=True)
    )
    with session.engines.autocast():
        scores = score(predictor_of(session), shares, predictions)
    answered = predictions.read()
    shown_queries = []
    for each in answered:
        if each.pictures:
            query, target, *steps, prediction = (tuple(map(tuple, grid)) for grid in each.pictures)
            shown_queries.append(
                ShownQuery(id=each.id, input=query, target=target, steps=tuple(steps), prediction=prediction)
            )
    results = {each.id: QueryResult(exact=each.exact, cell=each.cell, confidence=each.confidence) for each in answered}
    return scores, Validation(epoch=epoch, step=step, results=results, shown=tuple(shown_queries))


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
        """Show the run there from now on, and what its folder holds already."""
        self.mirrors = mirrors
        steps = self.tracker.steps
        # The step after which the epoch was not ended yet is shown with the epoch's numbers.
        waiting = [steps.pop()] if self._state.ends_epoch and steps and steps[-1]["step"] == self._state.step else []
        mirrors.catch_up(steps, self.tracker.epochs, self.tracker.validations)
        for record in waiting:
            mirrors.log_step(record, ends_epoch=True)

    def show_best(self, folder: Path) -> None:
        """Show a new best checkpoint, if the configuration asks for it."""
        if self._session.config.tracking.upload_best:
            self.mirrors.log_best(folder)

    def log_steps(self) -> None:
        """Keep the means over the steps since the last line."""
        state = self._state
        means, norms = state.since_log.means(), norms_by_part(state.since_log.mean_norms())
        flags = state.health.observe(
            state.step,
            loss=means["loss"],
            reward=means["reward/mean"],
            accuracy_delta=means["reward/d_acc"],
            gradient_norms=norms_by_part(state.since_log.largest_norms),
        )
        self._keep(
            {
                "step": state.step,
                "epoch": state.epoch,
                **means,
                **{f"grad_norm/{part}": norm for part, norm in norms.items()},
                **{f"lr/{group}": rate for group, rate in self._session.engines.learning_rates().items()},
                "size_weight": state.size_weight,
                "memory_threshold": state.memory_gate.threshold,
                "skipped_steps": state.skipped,
                **state.cost.record(),
                "flags": flags,
            }
        )
        _logger.info(
            "step %d: EFE loss %.4f, reward %+.4f, Qwen gradient norm %.2e, mask ratio %.3f, %.0f queries/s",
            *(state.step, means["efe/total"], means["reward/mean"], norms["qwen"], means["mask_ratio"]),
            means["pairs_per_s"],
        )

    def log_flags(self) -> None:
        """Keep the flags that are up, of a run that ends over one."""
        self._keep({"step": self._state.step, "epoch": self._state.epoch, "flags": self._state.health.flags})

    def log_epoch(self, scores: Mapping[str, float], validation: Validation | None) -> bool:
        """Keep the epoch that ends: means over its steps, the solver's memory, and its validation if it had one.

        Returns whether its models are the best so far.
        """
        state = self._state
        means = state.since_epoch.means()
        record: dict[str, float | int] = {
            "epoch": state.epoch,
            "step": state.step,
            "train/loss": means.pop("loss", math.nan),  # Not a number if every step was skipped.
            **means,
            **{f"solver/{name}": value for name, value in self._session.models.solver.statistics().items()},
            **scores,
            **state.cost.record(),
        }
        with state.cost.of_tracking():
            if validation is not None:
                self.tracker.log_validation(validation)
            is_best = self.tracker.log_epoch(record) and validation is not None
            plot = self.tracker.draw(sparingly=validation is None)
            self.mirrors.log_epoch(state.step, record, validation, plot)
        summary = ", ".join(f"{name} {record[name]:.4f}" for name in _SUMMARY if name in record)
        _logger.info("epoch %d: %s", state.epoch, summary)
        return is_best

    def _keep(self, record: Record) -> None:
        with self._state.cost.of_tracking():
            self.tracker.log_step(record)
            self.mirrors.log_step(record, ends_epoch=self._state.ends_epoch)
