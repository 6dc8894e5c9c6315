"""The training loop: epochs of steps, a log line now and then, a validation, a checkpoint.

Every process runs it and knows the same numbers; process 0 alone writes and speaks.
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from arcdist.distributed import Heartbeat
from arcdist.distributed.exchange import add_up
from arcdist.distributed.replicas import check_replicas
from arcdist.errors import ArcdistError, SaveError
from arcdist.evaluation import AnswerBook, Answerer, score
from arcdist.models.base_identity import base_identity, has_random_weights
from arcdist.regions import DATA, STEP, each_in_region, region
from arcdist.tracking import Mirrors, MovingPace, ProgressBar, Record, TrainingMetricsTracker
from arcdist.tracking.validation import Validation
from arcdist.training.checkpoint import Snapshot
from arcdist.training.checkpointing import Checkpointing
from arcdist.training.cost import Cost
from arcdist.training.curriculum import DynamicMemoryThreshold, SizeWarmupCurriculum
from arcdist.training.health import RunHealth
from arcdist.training.interrupt import Interrupt
from arcdist.training.interval import Interval
from arcdist.training.profile import StepProfiler
from arcdist.training.query_set import DealtBatch
from arcdist.training.records import (
    as_validation,
    by_part,
    epoch_record,
    epoch_summary,
    judged,
    not_finite,
    progress_note,
    step_record,
)
from arcdist.training.session import Session
from arcdist.training.state import replicated, restore, take_snapshot
from arcdist.training.step import StepReport, StepSettings, train_step

_logger = logging.getLogger(__name__)

MOST_SKIPPED_STEPS = 10
"""Steps in a row that may be skipped, because a loss or a gradient is not finite, before the run ends."""


class Loop:
    """Runs a session to its end; what changes from step to step is here and in the models."""

    def __init__(
        self, session: Session, folder: Path, heartbeat: Heartbeat, run_id: str = "", *, profiled_steps: int = 0
    ) -> None:
        output, curriculum = session.config.output, session.config.curriculum
        self.session = session
        self.config = session.config
        self.folder = folder
        self.run_id = run_id
        self.heartbeat = heartbeat
        self.mirrors = Mirrors(())
        self.profiled_steps = profiled_steps if session.is_main else 0
        self.pace = MovingPace()
        self.tracker = TrainingMetricsTracker(folder, output.best_metric, writes=session.is_main)
        self.health = RunHealth()
        self.size_curriculum = SizeWarmupCurriculum(
            start=curriculum.size_weight_start, end=curriculum.size_weight_end, epochs=curriculum.size_warmup_epochs
        )
        self.memory_gate = DynamicMemoryThreshold(
            curriculum.memory_threshold_start, curriculum.memory_threshold_alpha, curriculum.memory_gate
        )
        self.checkpointing = Checkpointing(folder, output, writes=session.is_main, best_saved=self._show_best)
        self.cost = Cost(session.accelerator.num_processes)
        self.epoch = 0
        self.batch = 0
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.gradients_checked = False
        self.since_log = Interval()
        self.since_epoch = Interval()
        self._clock = time.perf_counter()
        self._base = self._name_base() if session.is_main else None

    def _name_base(self) -> Future[dict[str, str]]:
        """In a thread: checksums of large models take seconds, and are not wanted before the first checkpoint."""
        qwen, seed = self.config.qwen, self.config.train.seed
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="base")
        body = self.session.models.qwen.body.config
        named = pool.submit(base_identity, body, qwen.model, random=has_random_weights(qwen), seed=seed)
        pool.shutdown(wait=False)
        return named

    @property
    def base(self) -> dict[str, str]:
        """The frozen base by name and checksum; empty but on process 0."""
        return {} if self._base is None else self._base.result()

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.config.train.epochs * self.session.steps_per_epoch

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from where a snapshot was taken. All processes call it together, before `run`.

        Raises:
            ConfigError: the snapshot belongs to another configuration.
        """
        restore(self.session, snapshot)
        state = snapshot.state
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.gradients_checked = state["gradients_checked"]
        self.memory_gate.load_state_dict(state["memory_gate"])
        self.health.load_state(state["health"])
        self.since_log.load_state(state["since_log"])
        self.since_epoch.load_state(state["since_epoch"])
        if "cost" in state:  # Checkpoints of older versions lack it.
            self.cost.load_state(state["cost"])
        self.checkpointing.saved_step = self.step
        self.tracker.go_on_from(self.step, state["epochs"])

    def _state(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "gradients_checked": self.gradients_checked,
            "memory_gate": self.memory_gate.state_dict(),
            "health": self.health.state(),
            "since_log": self.since_log.state(),
            "since_epoch": self.since_epoch.state(),
            "cost": self.cost.state(),
            "epochs": self.tracker.epochs,
            "base": self.base,
        }

    def run(self, mirrors: Mirrors | None = None) -> bool:
        """Train all epochs; whether they were, and the run was not preempted before.

        Args:
            mirrors: show the run's numbers elsewhere; process 0's.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with a whole checkpoint of the last step on disk.
            NotFiniteError: losses or gradients that are not finite in ten steps in a row, or in every step.
            HealthError: a parameter group that gets no gradient.
            ReplicaError: processes that should be alike are not.
            SaveError: a checkpoint could not be written, and the configuration or the end of the run asks for it.
        """
        quiet = not self.session.is_main
        self.cost.start()
        self.mirrors = mirrors or self.mirrors
        self._catch_up()
        ahead, device = self.total_steps - self.step, self.session.device
        profiler = StepProfiler(self.folder, self.profiled_steps, ahead, device)
        with Interrupt() as interrupt, ProgressBar(self.total_steps, done=self.step, quiet=quiet) as progress, profiler:
            self.heartbeat.observer = progress.tell_phase
            while self.epoch < self.config.train.epochs:
                if self.batch == self.session.steps_per_epoch:  # The run to go on from was refused or stopped there.
                    self._end_epoch()
                    self._save(now=self.step == self.total_steps)
                    continue
                self._clock = time.perf_counter()
                batches = self.session.training.loader(
                    self.epoch, self.session.device, self.session.steps_per_epoch, start=self.batch
                )
                for batch in each_in_region(DATA, batches):
                    report = self._train_on(batch, interrupt)
                    progress.advance(label=f"epoch {self.epoch}", note=progress_note(report, self.pace))
                    profiler.step(self.pace.seconds)
                    if self.skipped == self.step == self.total_steps:
                        self._refuse(report)
                    ends_epoch = self.batch == self.session.steps_per_epoch
                    # A validation may take longer than a batch system waits: whoever resumes begins with it.
                    stop, preempted = self._asked(interrupt) if ends_epoch else (report.stop, report.preempted)
                    if ends_epoch and not stop:
                        self._end_epoch()
                    self._save(now=stop or self.step == self.total_steps)
                    if stop:
                        return self._stop(preempted=preempted)
                    self._clock = time.perf_counter()  # Logging and saving are no part of the steps' pace.
                    self.heartbeat.doing("waiting for data")
            self._finish_saving()
        return True

    def _asked(self, interrupt: Interrupt) -> tuple[bool, bool]:
        """Whether some process was asked to stop, and whether to make room, as of now."""
        asked = torch.tensor([interrupt.requested, interrupt.preempted], device=self.session.device).float()
        stop, preempted = add_up({"asked": asked})["asked"].tolist()
        return stop > 0, preempted > 0

    def _stop(self, *, preempted: bool) -> bool:
        self._finish_saving()
        folder = self.checkpointing.folder_of(self.step)
        if preempted:
            _logger.warning("Asked to make room: step %d is saved in %s. Go on with --resume.", self.step, folder)
            return False
        _logger.warning("Interrupted: step %d is saved in %s. Go on with --resume.", self.step, folder)
        raise KeyboardInterrupt

    def _train_on(self, batch: DealtBatch, interrupt: Interrupt) -> StepReport:
        session = self.session
        self.heartbeat.doing("training", step=self.step + 1)
        settings = StepSettings(
            number=self.step,
            size_weight=self._size_weight(),
            memory_gate=self.memory_gate,
            reward=self.config.reward,
            seed=self.config.train.seed,
            stop=interrupt.requested,
            preempted=interrupt.preempted,
            save_failed=self.checkpointing.failed(),
        )
        with region(STEP):
            noise = session.refinement_noise(batch, self.epoch)
            report = train_step(batch, session.models, session.engines, noise, settings)
        self.step += 1
        self.batch += 1
        if report.save_failed:
            self.checkpointing.tell()
        self._guard(report)
        seconds = time.perf_counter() - self._clock
        self.pace.add(report.queries, report.tokens, seconds)
        if report.finite:
            self.memory_gate.update(report.metrics["train/cell"])
            for interval in (self.since_log, self.since_epoch):
                interval.add(report, seconds=seconds)
        # Where every step since the last line was skipped, there is nothing to tell.
        due = self.step % self.config.output.log_every == 0 or self.step == self.total_steps
        if due and self.since_log.steps:
            self._log()
        check_every = self.config.distributed.replica_check_every
        if check_every and self.step % check_every == 0:
            self.heartbeat.doing("comparing replicas")
            check_replicas(replicated(session), session.device, self.step)
        return report

    def _guard(self, report: StepReport) -> None:
        """Stop on what no run recovers from; a step whose numbers are not finite has changed nothing."""
        if not report.finite:
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= MOST_SKIPPED_STEPS:
                self._refuse(report)
            if not self.session.engines.precision.scales_losses:
                _logger.warning("Step %d was skipped on all processes: %s.", self.step, not_finite(report))
            return
        self.skipped_in_a_row = 0
        if not self.gradients_checked:
            self.gradients_checked = True
            with self._flags_told():
                self.health.require_gradients(report.group_norms)

    def _refuse(self, report: StepReport) -> None:
        in_a_row, self.skipped_in_a_row = self.skipped_in_a_row, 0
        if self.skipped < self.step:
            # None of those steps changed a parameter: the last good state is what there is.
            with suppress(SaveError):  # It is logged, and not the error to tell.
                self._save(now=True)
                self._finish_saving()
        self.skipped_in_a_row = in_a_row
        with self._flags_told():
            self.health.require_finite(self.step, judged(report), self.skipped_in_a_row)

    @contextmanager
    def _flags_told(self) -> Iterator[None]:
        try:
            yield
        except ArcdistError:
            self._keep({"step": self.step, "epoch": self.epoch, "flags": self.health.flags})
            raise

    def _catch_up(self) -> None:
        if not self.mirrors:
            return
        steps = self.tracker.steps
        ends_epoch = self.batch == self.session.steps_per_epoch
        # The step after which the epoch was not ended yet is shown with the epoch's numbers.
        waiting = [steps.pop()] if ends_epoch and steps and steps[-1]["step"] == self.step else []
        self.mirrors.catch_up(steps, self.tracker.epochs, self.tracker.validations)
        for record in waiting:
            self.mirrors.log_step(record, ends_epoch=True)

    def _show_best(self, folder: Path) -> None:
        if self.config.tracking.upload_best:
            self.mirrors.log_best(folder)

    def _keep(self, record: Record) -> None:
        with self.cost.of_tracking():
            self.tracker.log_step(record)
            self.mirrors.log_step(record, ends_epoch=self.batch == self.session.steps_per_epoch)

    def _log(self) -> None:
        means = self.since_log.means()
        flags = self.health.observe(
            self.step,
            loss=means["loss"],
            reward=means["reward/mean"],
            accuracy_delta=means["reward/d_acc"],
            gradient_norms=by_part(self.since_log.largest_norms),
        )
        record = step_record(means, self.session.engines.learning_rates())
        self._keep(
            {
                "step": self.step,
                "epoch": self.epoch,
                **record,
                "size_weight": self._size_weight(),
                "memory_threshold": self.memory_gate.threshold,
                "skipped_steps": self.skipped,
                **self.cost.record(),
                "flags": flags,
            }
        )
        _logger.info(
            "step %d: EFE loss %.4f, reward %+.4f, Qwen gradient norm %.2e, mask ratio %.3f, %.0f queries/s",
            self.step,
            means["efe/total"],
            means["reward/mean"],
            record["grad_norm/qwen"],
            means["mask_ratio"],
            means["pairs_per_s"],
        )
        self.since_log = Interval()

    def _size_weight(self) -> float:
        return self.size_curriculum.weight(self.step / self.session.steps_per_epoch)

    def _end_epoch(self) -> None:
        memory = self.session.models.solver.statistics()
        record: dict[str, float | int] = {"epoch": self.epoch, "step": self.step}
        record |= epoch_record(self.since_epoch.means(), memory)
        last = self.epoch + 1 == self.config.train.epochs
        validation = None
        if last or (self.epoch + 1) % self.config.output.validate_every == 0:
            scores, validation = self._validate()
            record |= scores
        record |= self.cost.record()
        with self.cost.of_tracking():
            if validation is not None:
                self.tracker.log_validation(validation)
            self.checkpointing.best_is_new = self.tracker.log_epoch(record) and validation is not None
            plot = self.tracker.draw()
            self.mirrors.log_epoch(self.step, record, validation, plot)
        _logger.info("epoch %d: %s", self.epoch, epoch_summary(record))
        self.epoch, self.batch, self.since_epoch = self.epoch + 1, 0, Interval()

    def _validate(self) -> tuple[dict[str, float], Validation]:
        self.heartbeat.doing("validating")
        session, models = self.session, self.session.models
        answerer = Answerer(
            read=session.engines.qwen,
            qwen=models.qwen,
            agent=models.averaged_agent.module,
            solver=models.solver,
            refiner=models.refiner,
        )
        shown, steps = self.config.tracking.shown_queries, self.config.agent.max_steps
        book = AnswerBook(session.validation.ids, shown, steps, session.device)
        with session.engines.autocast():
            scores = score(
                answerer,
                (
                    (queries, not share.is_padding)
                    for batch in session.validation.loader(0, session.device)
                    for queries, share in zip(batch.queries, batch.shares, strict=True)
                ),
                book,
            )
        with self.cost.of_tracking():
            return scores, as_validation(book.read(), epoch=self.epoch, step=self.step)

    def _save(self, *, now: bool) -> None:
        self.heartbeat.doing("saving")
        self.checkpointing.save(self.step, lambda: take_snapshot(self.session, self._state()), now=now)

    def _finish_saving(self) -> None:
        self.heartbeat.doing("finishing the checkpoint")
        self.checkpointing.finish()
