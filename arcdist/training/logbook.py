"""What a run tells of itself while it trains: its numbers on disk, in W&B and TensorBoard, and in the log."""

import logging
from pathlib import Path

from arcdist.tracking import Mirrors, Record, TrainingMetricsTracker
from arcdist.training.loop_state import LoopState
from arcdist.training.records import as_validation, by_part, epoch_record, epoch_summary, step_record
from arcdist.training.session import Session
from arcdist.training.validate import Validated

_logger = logging.getLogger(__name__)


class Logbook:
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

    def log_epoch(self, validated: Validated | None) -> bool:
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
