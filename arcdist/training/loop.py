"""The training loop: epochs of steps, a log line now and then, a validation, a checkpoint.

Every process runs it and knows the same numbers; process 0 alone writes and speaks.
"""

import logging
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from arcdist.checkpoint.state import base_identity, has_random_weights, replicated, restore, take_snapshot
from arcdist.checkpoint.store import Checkpointing, Snapshot
from arcdist.data.batch import DistributedBatch
from arcdist.distributed import Heartbeat, world_size
from arcdist.distributed.collectives import all_reduce_sum, check_replicas
from arcdist.errors import ArcdistError, SaveError
from arcdist.regions import DATA, STEP, each_in_region, region
from arcdist.tracking import Mirrors, MovingPace, ProgressBar
from arcdist.training.diagnostics import StepProfiler
from arcdist.training.loop_state import LoopState
from arcdist.training.metrics import MetricsLogger, judged, not_finite, progress_note, validate
from arcdist.training.session import Session
from arcdist.training.step import StepReport, StepSettings, train_step

_SAME_SIGNAL_SECONDS = 1.0
"""A terminal's Ctrl-C reaches a process and its launcher, and torchrun hands its own on: one wish, two signals."""

PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What batch systems send before they take the machine away, and a terminal that is closed."""


class Interrupt:
    """While the block runs, signals only set what is asked for; a second Ctrl-C interrupts at once.

    `accelerate launch` hands no signal on to a single process. That its launcher is gone is then the signal.
    """

    def __init__(self) -> None:
        self._stop = False
        self._preempted = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        launched_alone = world_size() == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if launched_alone else None

    @property
    def requested(self) -> bool:
        """Whether the run is to end, by Ctrl-C or to be preempted."""
        return self._stop or self.preempted

    @property
    def preempted(self) -> bool:
        """Whether this is no wish of the user's: the run will be resumed."""
        return self._preempted or (self._launcher is not None and os.getppid() != self._launcher)

    def __enter__(self) -> "Interrupt":
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._stop_at_step)
        for number in PREEMPTIONS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # The run was started with nohup, to outlive its terminal.
            self._previous[number] = signal.signal(number, self._preempt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop_at_step(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stop and now - self._since > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        self._since = now if not self._stop else self._since
        self._stop = True

    def _preempt(self, _number: int, _frame: FrameType | None) -> None:
        self._preempted = True


_logger = logging.getLogger(__name__)

MOST_SKIPPED_STEPS = 10
"""Steps in a row that may be skipped, because a loss or a gradient is not finite, before the run ends."""


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

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from where a snapshot was taken. All processes call it together, before `run`.

        Raises:
            ConfigError: the snapshot belongs to another configuration.
        """
        restore(self.session, snapshot)
        self.state.load_state(snapshot.state)
        self.checkpointing.saved_step = self.state.step
        self.metrics_logger.tracker.go_on_from(self.state.step, snapshot.state["epochs"])

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
        state, session = self.state, self.session
        state.cost.start()
        if mirrors is not None:
            self.metrics_logger.show_in(mirrors)
        profiler = StepProfiler(self.folder, self.profiled_steps, state.total_steps - state.step, session.device)
        progress = ProgressBar(state.total_steps, done=state.step, quiet=not session.is_main)
        with Interrupt() as interrupt, progress, profiler:
            self.heartbeat.observer = progress.tell_phase
            while state.epoch < self.config.train.epochs:
                if state.ends_epoch:  # The run to go on from was refused or stopped there.
                    self._end_epoch()
                    self._save(now=state.ends_run)
                    continue
                for report in self._train_epoch(interrupt):
                    progress.advance(label=f"epoch {state.epoch}", note=progress_note(report, self.pace))
                    profiler.step(self.pace.seconds)
                    stop, preempted = self._end_step(report, interrupt)
                    if stop:
                        return self._stop(preempted=preempted)
            self._finish_saving()
        return True

    def _train_epoch(self, interrupt: Interrupt) -> Iterator[StepReport]:
        """Make the steps that are left of this epoch."""
        state, device = self.state, self.session.device
        self._clock = time.perf_counter()
        batches = self.session.training.loader(state.epoch, device, state.steps_per_epoch, start=state.batch)
        for batch in each_in_region(DATA, batches):
            yield self._train_on(batch, interrupt)
            self._clock = time.perf_counter()  # Logging and saving are no part of the steps' pace.
            self.heartbeat.doing("waiting for data")

    def _end_step(self, report: StepReport, interrupt: Interrupt) -> tuple[bool, bool]:
        """Validate and save where that is due; whether the run is to stop, and whether to make room."""
        state = self.state
        if state.skipped == state.step == state.total_steps:
            self._refuse(report)
        ends_epoch = state.ends_epoch
        # A validation may take longer than a batch system waits: whoever resumes begins with it.
        stop, preempted = self._asked(interrupt) if ends_epoch else (report.stop, report.preempted)
        if ends_epoch and not stop:
            self._end_epoch()
        self._save(now=stop or state.ends_run)
        return stop, preempted

    def _asked(self, interrupt: Interrupt) -> tuple[bool, bool]:
        """Whether some process was asked to stop, and whether to make room, as of now."""
        asked = torch.tensor([interrupt.requested, interrupt.preempted], device=self.session.device).float()
        stop, preempted = all_reduce_sum({"asked": asked})["asked"].tolist()
        return stop > 0, preempted > 0

    def _stop(self, *, preempted: bool) -> bool:
        self._finish_saving()
        step = self.state.step
        why = "Asked to make room" if preempted else "Interrupted"
        _logger.warning(
            "%s: step %d is saved in %s. Go on with --resume.", why, step, self.checkpointing.folder_of(step)
        )
        if not preempted:
            raise KeyboardInterrupt
        return False

    def _train_on(self, batch: DistributedBatch, interrupt: Interrupt) -> StepReport:
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
        )
        with region(STEP):
            noise = session.refinement_noise(batch, state.epoch)
            report = train_step(batch, session.models, session.engines, noise, settings)
        state.step += 1
        state.batch += 1
        if report.save_failed:
            self.checkpointing.tell()
        self._guard(report)
        seconds = time.perf_counter() - self._clock
        self.pace.add(report.queries, report.tokens, seconds)
        if report.finite:
            state.add(report, seconds=seconds)
        # Where every step since the last line was skipped, there is nothing to tell.
        due = state.step % self.config.output.log_every == 0 or state.ends_run
        if due and state.since_log.steps:
            self.metrics_logger.log_steps()
            state.begin_line()
        check_every = self.config.distributed.replica_check_every
        if check_every and state.step % check_every == 0:
            self.heartbeat.doing("comparing replicas")
            check_replicas(replicated(session), session.device, state.step)
        return report

    def _guard(self, report: StepReport) -> None:
        """Stop on what no run recovers from; a step whose numbers are not finite has changed nothing."""
        state = self.state
        if not report.finite:
            state.skipped += 1
            state.skipped_in_a_row += 1
            if state.skipped_in_a_row >= MOST_SKIPPED_STEPS:
                self._refuse(report)
            if not self.session.engines.precision.scales_losses:
                _logger.warning("Step %d was skipped on all processes: %s.", state.step, not_finite(report))
            return
        state.skipped_in_a_row = 0
        if not state.gradients_checked:
            state.gradients_checked = True
            with self._flags_told():
                state.health.require_gradients(report.group_norms)

    def _refuse(self, report: StepReport) -> None:
        state = self.state
        in_a_row, state.skipped_in_a_row = state.skipped_in_a_row, 0
        if state.skipped < state.step:
            # None of those steps changed a parameter: the last good state is what there is.
            with suppress(SaveError):  # It is logged, and not the error to tell.
                self._save(now=True)
                self._finish_saving()
        state.skipped_in_a_row = in_a_row
        with self._flags_told():
            state.health.require_finite(state.step, judged(report), state.skipped_in_a_row)

    @contextmanager
    def _flags_told(self) -> Iterator[None]:
        try:
            yield
        except ArcdistError:
            self.metrics_logger.log_flags()
            raise

    def _end_epoch(self) -> None:
        epochs = self.state.epoch + 1
        if epochs == self.config.train.epochs or epochs % self.config.output.validate_every == 0:
            self.heartbeat.doing("validating")
            validation = validate(self.session)
        else:
            validation = None
        self.checkpointing.best_is_new = self.metrics_logger.log_epoch(validation)
        self.state.begin_epoch()

    def _save(self, *, now: bool) -> None:
        self.heartbeat.doing("saving")
        self.checkpointing.save(self.state.step, self._snapshot, now=now)

    def _snapshot(self) -> Snapshot | None:
        counted, epochs = self.state.state(), self.metrics_logger.tracker.epochs
        return take_snapshot(self.session, {"run_id": self.run_id, **counted, "epochs": epochs, "base": self.base})

    def _finish_saving(self) -> None:
        self.heartbeat.doing("finishing the checkpoint")
        self.checkpointing.finish()
