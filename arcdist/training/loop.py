"""The training loop: epochs of steps, a log line now and then, a validation, a checkpoint.

Every process runs it and knows the same numbers; process 0 alone writes and speaks.
"""

import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arcdist.distributed import Heartbeat
from arcdist.distributed.exchange import hear_from_first
from arcdist.distributed.replicas import check_replicas
from arcdist.errors import ArcdistError, SaveError
from arcdist.evaluation import Answerer, score
from arcdist.models.base_identity import base_identity
from arcdist.models.embedded import TINY
from arcdist.tracking import ProgressBar, TrainingMetricsTracker
from arcdist.training.checkpoint import Snapshot, step_folder
from arcdist.training.curriculum import DynamicMemoryThreshold, SizeWarmupCurriculum
from arcdist.training.health import RunHealth
from arcdist.training.interrupt import Interrupt
from arcdist.training.interval import Interval
from arcdist.training.query_set import DealtBatch
from arcdist.training.saver import Saver
from arcdist.training.session import Session
from arcdist.training.state import replicated, restore, take_snapshot
from arcdist.training.step import StepReport, StepSettings, train_step

_logger = logging.getLogger(__name__)

MOST_SKIPPED_STEPS = 10
"""Steps in a row that may be skipped, because a loss or a gradient is not finite, before the run ends."""


class Loop:
    """Runs a session to its end; what changes from step to step is here and in the models."""

    def __init__(self, session: Session, folder: Path, heartbeat: Heartbeat) -> None:
        output, curriculum = session.config.output, session.config.curriculum
        self.session = session
        self.config = session.config
        self.folder = folder
        self.heartbeat = heartbeat
        self.tracker = TrainingMetricsTracker(folder, output.best_metric, writes=session.is_main)
        self.health = RunHealth()
        self.size_curriculum = SizeWarmupCurriculum(
            start=curriculum.size_weight_start, end=curriculum.size_weight_end, epochs=curriculum.size_warmup_epochs
        )
        self.memory_gate = DynamicMemoryThreshold(
            curriculum.memory_threshold_start, curriculum.memory_threshold_alpha, curriculum.memory_gate
        )
        self.saver = Saver(output.keep_last)
        self.epoch = 0
        self.batch = 0
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.saved_step: int | None = None
        self.best_is_new = False
        self.gradients_checked = False
        self.since_log = Interval()
        self.since_epoch = Interval()
        self._clock = time.perf_counter()
        self._base = self._name_base() if session.is_main else None

    def _name_base(self) -> Future[dict[str, str]]:
        """In a thread: checksums of large models take seconds, and are not wanted before the first checkpoint."""
        qwen, seed = self.config.qwen, self.config.train.seed
        is_random = qwen.init == "random" or qwen.model == TINY
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="base")
        body = self.session.models.qwen.body.config
        named = pool.submit(base_identity, body, qwen.model, random=is_random, seed=seed)
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
        self.tracker.go_on_from(self.step, state["epochs"])
        self.saved_step = self.step

    def _state(self) -> dict[str, Any]:
        return {
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
            "epochs": self.tracker.epochs,
            "base": self.base,
        }

    def run(self) -> bool:
        """Train all epochs; whether they were, and the run was not preempted before.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with a whole checkpoint of the last step on disk.
            NotFiniteError: losses or gradients that are not finite in ten steps in a row, or in every step.
            HealthError: a parameter group that gets no gradient.
            ReplicaError: processes that should be alike are not.
            SaveError: a checkpoint could not be written, and the configuration or the end of the run asks for it.
        """
        quiet = not self.session.is_main
        with Interrupt() as interrupt, ProgressBar(self.total_steps, done=self.step, quiet=quiet) as progress:
            while self.epoch < self.config.train.epochs:
                if self.batch == self.session.steps_per_epoch:  # The run to go on from was refused there.
                    self._end_epoch()
                    continue
                self._clock = time.perf_counter()
                batches = self.session.training.loader(
                    self.epoch, self.session.device, self.session.steps_per_epoch, start=self.batch
                )
                for batch in batches:
                    report = self._train_on(batch, interrupt)
                    progress.advance(label=f"epoch {self.epoch}", note=_note(report))
                    if self.skipped == self.step == self.total_steps:
                        self._refuse(report)
                    if self.batch == self.session.steps_per_epoch:
                        self._end_epoch()
                    stops = report.stop or report.preempted
                    self._save(now=stops or self.step == self.total_steps)
                    if stops:
                        return self._stop(report)
                    self._clock = time.perf_counter()  # Logging and saving are no part of the steps' pace.
                    self.heartbeat.doing("waiting for data")
            self._finish_saving()
        return True

    def _stop(self, report: StepReport) -> bool:
        self._finish_saving()
        folder = step_folder(self.folder / "checkpoints", self.step)
        if report.preempted:
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
            save_failed=self.saver.failed(),
        )
        noise = session.refinement_noise(batch, self.epoch)
        report = train_step(batch, session.models, session.engines, noise, settings)
        self.step += 1
        self.batch += 1
        if report.save_failed:
            self._tell_failure(fatal=self.config.output.on_save_error == "stop")
        self._guard(report)
        seconds = time.perf_counter() - self._clock
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
                _logger.warning("Step %d was skipped on all processes: %s.", self.step, _not_finite(report))
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
            self.health.require_finite(self.step, _judged(report), self.skipped_in_a_row)

    @contextmanager
    def _flags_told(self) -> Iterator[None]:
        try:
            yield
        except ArcdistError:
            self.tracker.log_step({"step": self.step, "epoch": self.epoch, "flags": self.health.flags})
            raise

    def _log(self) -> None:
        means = self.since_log.means()
        flags = self.health.observe(
            self.step,
            loss=means["loss"],
            reward=means["reward/mean"],
            accuracy_delta=means["reward/d_acc"],
            gradient_norms=_parts(self.since_log.largest_norms),
        )
        norms = {name: norm for name, norm in means.items() if name.startswith("grad_norm/")}
        parts = _parts({name.removeprefix("grad_norm/"): norm for name, norm in norms.items()})
        rates = self.session.engines.learning_rates()
        self.tracker.log_step(
            {
                "step": self.step,
                "epoch": self.epoch,
                **{name: value for name, value in means.items() if name not in norms},
                **{f"grad_norm/{name}": norm for name, norm in parts.items()},
                **{f"lr/{name}": rate for name, rate in rates.items()},
                "size_weight": self._size_weight(),
                "memory_threshold": self.memory_gate.threshold,
                "skipped_steps": self.skipped,
                "flags": flags,
            }
        )
        _logger.info(
            "step %d: EFE loss %.4f, reward %+.4f, Qwen gradient norm %.2e, mask ratio %.3f, %.0f queries/s",
            self.step,
            means["efe/total"],
            means["reward/mean"],
            parts["qwen"],
            means["mask_ratio"],
            means["pairs_per_s"],
        )
        self.since_log = Interval()

    def _size_weight(self) -> float:
        return self.size_curriculum.weight(self.step / self.session.steps_per_epoch)

    def _end_epoch(self) -> None:
        means = self.since_epoch.means()
        record: dict[str, float | int] = {
            "epoch": self.epoch,
            "train/loss": means.get("loss", math.nan),
            **{name: value for name, value in means.items() if name.startswith(("train/", "efe/", "reward/"))},
            "pairs_per_s": means["pairs_per_s"],
            **{f"solver/{name}": value for name, value in self.session.models.solver.statistics().items()},
        }
        last = self.epoch + 1 == self.config.train.epochs
        validate = last or (self.epoch + 1) % self.config.output.validate_every == 0
        if validate:
            record |= self._validate()
        self.best_is_new = self.tracker.log_epoch(record) and validate
        self.tracker.draw()
        _logger.info("epoch %d: %s", self.epoch, _summary(record))
        self.epoch, self.batch, self.since_epoch = self.epoch + 1, 0, Interval()

    def _validate(self) -> dict[str, float]:
        self.heartbeat.doing("validating")
        session, models = self.session, self.session.models
        answerer = Answerer(
            read=session.engines.qwen,
            qwen=models.qwen,
            agent=models.averaged_agent.module,
            solver=models.solver,
            refiner=models.refiner,
        )
        with session.engines.autocast():
            return score(
                answerer,
                (
                    (queries, not share.is_padding)
                    for batch in session.validation.loader(0, session.device)
                    for queries, share in zip(batch.queries, batch.shares, strict=True)
                ),
            )

    def _save(self, *, now: bool) -> None:
        """Begin to save where a checkpoint or a new best is due, or `now`; what is saved already is not again."""
        # The best first: who resumes from a checkpoint after that epoch does not write it again.
        folders = [self.folder / "best"] if self.best_is_new else []
        due = now or self.step % self.config.output.save_every == 0
        if due and self.saved_step != self.step:
            folders.append(step_folder(self.folder / "checkpoints", self.step))
        if not folders:
            return
        self.heartbeat.doing("saving")
        # Every process has a part in what is gathered; the first one writes it, while training goes on.
        snapshot = take_snapshot(self.session, self._state())
        self.saver.wait()
        self._tell_failure(fatal=self.config.output.on_save_error == "stop")
        if self.session.is_main:
            if self.saved_step is None:
                _logger.info("A checkpoint takes %.1f MB.", snapshot.size / 1e6)
            self.saver.save(snapshot, folders)
        self.saved_step, self.best_is_new = self.step if due else self.saved_step, False

    def _finish_saving(self) -> None:
        """Wait until all is on disk; a run must not end without its last checkpoint as if it had one."""
        self.heartbeat.doing("finishing the checkpoint")
        self.saver.wait()
        self._tell_failure(fatal=True)

    def _tell_failure(self, *, fatal: bool) -> None:
        failure = hear_from_first(self.saver.take_failure())
        if failure:
            _logger.error("NOT SAVED: %s%s", failure, "" if fatal else " Training goes on.")
        if failure and fatal:
            raise SaveError(failure)


def _judged(report: StepReport) -> dict[str, float]:
    return {"loss": report.metrics["loss"], **report.group_norms}


def _not_finite(report: StepReport) -> str:
    """What of a step is not finite, and where it began as far as that is known."""
    bad = ", ".join(f"{name} = {value}" for name, value in _judged(report).items() if not math.isfinite(value))
    ranks = ", ".join(map(str, report.not_finite_on))
    return f"{bad} (from rank {ranks})" if ranks else bad


def _parts(norms: dict[str, float]) -> dict[str, float]:
    """Norms of parameter groups as norms of the parts that users know: all of Qwen's groups are one."""
    owner = {"lora": "qwen", "prompt_projection": "qwen", "control_mlp": "qwen", "task_vectors": "agent"}
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        part = owner.get(name, name)
        squares[part] = squares.get(part, 0.0) + norm**2
    return {part: math.sqrt(square) for part, square in squares.items()}


def _note(report: StepReport) -> str:
    return f"loss {report.metrics['loss']:.3f}, exact {report.metrics['train/exact']:.0%}"


def _summary(record: dict[str, float | int]) -> str:
    shown = ("train/loss", "train/exact", "val/exact", "val/cell", "val/size", "val/accuracy_delta")
    return ", ".join(f"{name} {record[name]:.4f}" for name in shown if name in record)
