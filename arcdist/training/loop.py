"""The training loop: epochs of steps, log lines and checkpoints at their cadence, a validation.

Every process runs it and knows the same numbers; only process 0 writes and logs.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from arcdist.checkpoint.state import base_identity, replicated, restore, take_snapshot
from arcdist.checkpoint.store import Checkpointing, Snapshot
from arcdist.data.batch import DistributedBatch
from arcdist.data.text import has_random_weights
from arcdist.distributed import Heartbeat, world_size
from arcdist.distributed.collectives import all_reduce_sum, check_replicas
from arcdist.errors import HealthError, NotFiniteError, SaveError
from arcdist.regions import DATA, STEP, each_in_region, region
from arcdist.tracking import Mirrors, MovingPace, ProgressBar
from arcdist.training.diagnostics import StepProfiler
from arcdist.training.loop_state import LoopState
from arcdist.training.metrics import MetricsLogger, validate
from arcdist.training.session import Session
from arcdist.training.step import StepReport, StepSettings, train_step

_logger = logging.getLogger(__name__)

MOST_SKIPPED_STEPS = 10
"""Steps in a row that may be skipped, because a loss or a gradient is not finite, before the run ends."""

PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What batch systems send before they take the machine away, and a terminal that is closed."""

_SAME_SIGNAL_SECONDS = 1.0
"""A terminal's Ctrl-C reaches a process and its launcher, and torchrun forwards its own: one request, two signals."""


class Interrupt:
    """While the block runs, signals only set what is requested; a second Ctrl-C interrupts at once.

    `accelerate launch` forwards no signal to a single process. The end of its launcher is then the signal.
    """

    def __init__(self) -> None:
        self._stopped_at: float | None = None
        self._preempted = False
        self._previous: dict[int, Any] = {}
        launched_alone = world_size() == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if launched_alone else None

    @property
    def requested(self) -> bool:
        """Whether the run is to end, by Ctrl-C or preempted."""
        return self._stopped_at is not None or self.preempted

    @property
    def preempted(self) -> bool:
        """Whether the request is the system's, not the user's: the run will be resumed."""
        return self._preempted or (self._launcher is not None and os.getppid() != self._launcher)

    def __enter__(self) -> "Interrupt":
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._stop)
        for number in PREEMPTIONS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # The run was started with nohup, to outlive its terminal.
            self._previous[number] = signal.signal(number, self._preempt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: installed from C.

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stopped_at is None:
            self._stopped_at = now
        elif now - self._stopped_at > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    def _preempt(self, _number: int, _frame: FrameType | None) -> None:
        self._preempted = True


class Loop:
    """Runs a session to its end; what changes from step to step is in `state` and in the models."""

    def __init__(
        self, session: Session, folder: Path, heartbeat: Heartbeat, run_id: str = "", *, profiled_steps: int = 0
    ) -> None:
        self.session = session
        self.config = session.config
        self.folder = folder
        self.run_id = run_id
        self.heartbeat = heartbeat
        self.profiled_steps = profiled_steps if session.is_main else 0
        self.pace = MovingPace()
        self.state = LoopState(session.config, session.steps_per_epoch, session.accelerator.num_processes)
        self.metrics_logger = MetricsLogger(session, folder, self.state)
        self.checkpointing = Checkpointing(folder, session.config.output, best_saved=self.metrics_logger.show_best)
        self._base: Future[dict[str, str]] | None = None
        if session.is_main:
            # In a thread: checksums of large models take seconds, and are not needed before the first checkpoint.
            pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="base")
            qwen, body = self.config.qwen, session.models.qwen.body.config
            self._base = pool.submit(
                base_identity,
                body,
                qwen.model,
                random=has_random_weights(qwen.model, qwen.init),
                seed=self.config.train.seed,
            )
            pool.shutdown(wait=False)

    @property
    def base(self) -> dict[str, str]:
        """The frozen base by name and checksum; empty except on process 0."""
        return {} if self._base is None else self._base.result()

    def resume(self, snapshot: Snapshot) -> None:
        """Continue from where a snapshot was taken. All processes call it together, before `run`.

        Raises:
            ConfigError: the snapshot belongs to another configuration.
        """
        restore(self.session, snapshot)
        self.state.load_state(snapshot.state)
        self.session.engines.use_budget(self.state.budget_used)
        self.checkpointing.saved_step = self.state.step
        self.metrics_logger.tracker.resume_from(self.state.step, snapshot.state["epochs"])

    def run(self, mirrors: Mirrors | None = None) -> bool:
        """Train all epochs, or until the time is used; True at that end, False if the run was preempted before.

        Args:
            mirrors: show the run's numbers elsewhere; process 0's.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with a whole checkpoint of the last step on disk.
            NotFiniteError: losses or gradients that are not finite in ten steps in a row, or in every step.
            HealthError: a parameter group that gets no gradient.
            ReplicaError: processes that should be alike are not.
            SaveError: a checkpoint could not be written, and the configuration or the end of the run asks for it.
        """
        state, session = self.state, self.session
        state.cost.start()
        if mirrors:
            self.metrics_logger.show_in(mirrors)
        by_steps = state.budget is None
        ahead = state.total - state.step if by_steps else None
        profiler = StepProfiler(self.folder, self.profiled_steps, ahead, session.device)
        progress = ProgressBar(state.total, done=state.done, unit="" if by_steps else " s", quiet=not session.is_main)
        with Interrupt() as interrupt, progress, profiler:
            self.heartbeat.observer = progress.show_phase
            while not state.is_complete:
                for batch, start in self._batches():
                    report = self._train_on(batch, start, interrupt)
                    loss, exact = report.metrics["loss"], report.metrics["train/exact"]
                    note = f"loss {loss:.3g}, exact {exact:.0%}, {self.pace}"
                    progress.advance(state.done - progress.done, label=f"epoch {state.epoch}", note=note)
                    profiler.step(self.pace.seconds)
                    stop, preempted = report.stop, report.preempted
                    if state.ends_epoch:
                        # A validation may take longer than a batch system waits: the resumed run begins with it.
                        stop, preempted = self._ask_all(interrupt)
                    if stop:
                        return self._stop(preempted=preempted)
                    if state.ends_epoch:
                        break  # The time may be used before the batches are.
                    self._save()
                self._end_epoch()
        return True

    def _batches(self) -> Iterator[tuple[DistributedBatch, float]]:
        """The batches that are left of this epoch, each with the time at which the wait for it began."""
        state, device = self.state, self.session.device
        if state.ends_epoch:
            return  # A resumed run may have only its validation before it.
        batches = self.session.training.loader(state.epoch, device, state.steps_per_epoch, start=state.batch)
        # Logging and saving, which come between two batches, are no part of the steps' pace.
        start = time.perf_counter()
        for batch in each_in_region(DATA, batches):
            yield batch, start
            self.heartbeat.doing("waiting for data")
            start = time.perf_counter()

    def _train_on(self, batch: DistributedBatch, start: float, interrupt: Interrupt) -> StepReport:
        """Train on a batch, count the step, and log and check whatever is due after it."""
        state, session = self.state, self.session
        self.heartbeat.doing("training", step=state.step + 1)
        settings = StepSettings(
            config=self.config,
            number=state.step,
            size_weight=state.size_weight,
            memory_threshold=state.memory_gate.threshold,
            stop=interrupt.requested,
            preempted=interrupt.preempted,
            save_failed=self.checkpointing.failed(),
            seconds=state.cost.seconds,
        )
        with region(STEP):
            noise = session.refinement_noise(batch, state.epoch)
            report = train_step(batch, session.models, session.engines, noise, settings)
        state.step += 1
        state.batch += 1
        self._use_time(report.seconds)
        if report.save_failed:
            self.checkpointing.report_failure()
        try:
            self._check(report)
        except (HealthError, NotFiniteError):
            self.metrics_logger.log_flags()
            raise
        seconds = time.perf_counter() - start
        self.pace.add(report.queries, report.tokens, seconds)
        if report.finite:
            state.add(report, seconds=seconds)
        self._log_steps()
        check_every = self.config.distributed.replica_check_every
        if check_every and state.step % check_every == 0:
            self.heartbeat.doing("comparing replicas")
            check_replicas(replicated(session), session.device, state.step)
        return report

    def _log_steps(self) -> None:
        """Log the steps since the last line if that is due, and begin another one."""
        state = self.state
        # If every step since the last line was skipped, there is nothing to log.
        if state.since_log.steps and (state.step % self.config.output.log_every == 0 or state.ends_run):
            self.metrics_logger.log_steps()
            state.begin_line()

    def _check(self, report: StepReport) -> None:
        """End the run on what it cannot recover from; a step whose numbers are not finite has changed nothing."""
        state = self.state
        if report.finite:
            state.skipped_in_a_row = 0
            if not state.gradients_checked:
                state.gradients_checked = True
                norms = dict(report.group_norms)
                if not self.config.efe.reversibility_weight:
                    # What reads the agent's states begins at zero, but for that of the way back: without a loss of it,
                    # the matrices have a gradient from the second step on.
                    norms.pop("agent_matrices", None)
                if self.config.agent.task_vector_dropout:
                    # By chance all queries of the first batch may hide their task.
                    norms.pop("task_vectors", None)
                state.health.require_gradients(norms)
            return
        numbers = {"loss": report.metrics["loss"], **report.group_norms}
        bad = ", ".join(f"{name} = {value}" for name, value in numbers.items() if not math.isfinite(value))
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row < MOST_SKIPPED_STEPS:
            if not self.session.engines.precision.scales_losses:
                ranks = ", ".join(map(str, report.not_finite_on))
                origin = f" (from rank {ranks})" if ranks else ""
                _logger.warning("Step %d was skipped on all processes: %s%s.", state.step, bad, origin)
            if not state.ends_run or state.skipped < state.step:
                return
        in_a_row = state.skipped_in_a_row
        if state.skipped < state.step:
            # None of these steps changed a parameter, so the models are the last good ones. Whoever resumes from them
            # may skip as many steps again.
            state.skipped_in_a_row = 0
            with suppress(SaveError):  # It is logged, and not the error to report.
                self._save(now=True)
        raise state.health.not_finite(state.step, bad, in_a_row)

    def _end_epoch(self) -> None:
        """Validate if that is due, log the epoch, and begin the next one with its checkpoint."""
        state = self.state
        scores: dict[str, float] = {}
        validation = None
        if state.ends_run or (state.epoch + 1) % self.config.output.validate_every == 0:
            self.heartbeat.doing("validating")
            scores, validation = validate(self.session, epoch=state.epoch, step=state.step)
            if state.budget is not None and not state.ends_run:
                # If the validation has used the rest of the time, it was the last one.
                own = torch.tensor(state.cost.seconds if self.session.is_main else 0.0, device=self.session.device)
                self._use_time(all_reduce_sum({"seconds": own})["seconds"].item())
                self._log_steps()
        self.checkpointing.best_is_new = self.metrics_logger.log_epoch(scores, validation)
        state.begin_epoch()
        self._save(now=state.ends_run)

    def _use_time(self, seconds: float) -> None:
        """Take in the time that the run has taken, on which all processes agree."""
        self.state.seconds = seconds
        self.session.engines.use_budget(self.state.budget_used)

    def _ask_all(self, interrupt: Interrupt) -> tuple[bool, bool]:
        """Whether some process was asked to stop, and whether because it is preempted, as of now."""
        requests = torch.tensor([interrupt.requested, interrupt.preempted], device=self.session.device).float()
        stop, preempted = all_reduce_sum({"requests": requests})["requests"].tolist()
        return stop > 0, preempted > 0

    def _stop(self, *, preempted: bool) -> bool:
        """Save the last step and end the run: by KeyboardInterrupt, or with False if it is preempted."""
        self._save(now=True)
        step, why = self.state.step, "Asked to make room" if preempted else "Interrupted"
        folder = self.checkpointing.folder_of(step)
        _logger.warning("%s: step %d is saved in %s. Continue with --resume.", why, step, folder)
        if not preempted:
            raise KeyboardInterrupt
        return False

    def _save(self, *, now: bool = False) -> None:
        """Save the step if that is due; `now` saves it in any case, and waits until it is on disk."""
        self.heartbeat.doing("saving")
        self.checkpointing.save(self.state.step, self._snapshot, now=now)
        if now:
            self.heartbeat.doing("finishing the checkpoint")
            self.checkpointing.finish()

    def _snapshot(self) -> Snapshot | None:
        counted, epochs = self.state.state(), self.metrics_logger.tracker.epochs
        return take_snapshot(self.session, {"run_id": self.run_id, **counted, "epochs": epochs, "base": self.base})
