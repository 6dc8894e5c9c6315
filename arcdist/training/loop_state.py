"""Where a run is, and what it has counted on the way."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from arcdist.config import Config
from arcdist.training.health import RunHealth
from arcdist.training.step import StepReport


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeWarmupCurriculum:
    """Lowers the weight of the size loss linearly: cells can only be right once the grid has its size."""

    start: float = 1.0
    end: float = 0.5
    epochs: int = 3
    """Length of the warm-up; 0 gives `end` from the beginning."""

    def weight(self, epoch: float | int) -> float:
        """Weight at `epoch`, counted from 0 and fractional within an epoch.

        w(e) = start + (end - start) * min(e / epochs, 1)
        """
        if epoch >= self.epochs:
            return self.end
        return self.start + (self.end - self.start) * epoch / self.epochs


class DynamicMemoryThreshold:
    """Gates the solver's memory by how well the run does at present.

    average <- (1 - alpha) average + alpha accuracy, beginning at `start`.
    """

    def __init__(self, start: float = 0.2, alpha: float = 0.1, gate: float = 1.1) -> None:
        self.alpha = alpha
        self.gate = gate
        self._average = start

    @property
    def threshold(self) -> float:
        """Cell accuracy that a query must exceed: `gate` times the average. Above 1 only exact grids enter."""
        return self.gate * self._average

    def update(self, accuracy: float) -> None:
        """Move the average towards a batch's mean cell accuracy (0 to 1)."""
        self._average += self.alpha * (accuracy - self._average)

    def state(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"average": self._average}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from `state()` of another run."""
        self._average = state["average"]


class Interval:
    """Means of the metrics over queries, means and maxima of the gradient norms over steps, and the pace."""

    def __init__(self) -> None:
        self.largest_norms: dict[str, float] = {}
        self.steps = 0
        self._sums: dict[str, float] = defaultdict(float)
        self._norm_sums: dict[str, float] = defaultdict(float)
        self._queries = 0
        self._tokens = 0
        self._seconds = 0.0

    def add(self, report: StepReport, *, seconds: float) -> None:
        """Take in a step and what it took, its wait for data included."""
        self.steps += 1
        self._queries += report.queries
        self._tokens += report.tokens
        self._seconds += seconds
        norms = {f"grad_norm/{name}": norm for name, norm in report.group_norms.items()}
        for name, value in report.metrics.items():
            self._sums[name] += value * report.queries  # The last batch of an epoch may be smaller.
        for name, norm in norms.items():
            self._norm_sums[name] += norm
        for name, norm in report.group_norms.items():
            self.largest_norms[name] = max(norm, self.largest_norms.get(name, 0.0))

    def means(self) -> dict[str, float]:
        """Metrics, `grad_norm/<group>`, and `pairs_per_s` and `tokens_per_s`; only the pace if nothing was added."""
        seconds = max(self._seconds, 1e-9)
        means = {name: total / self._queries for name, total in self._sums.items()}
        means |= {name: total / self.steps for name, total in self._norm_sums.items()}
        return means | {"pairs_per_s": self._queries / seconds, "tokens_per_s": self._tokens / seconds}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "steps": self.steps,
            "queries": self._queries,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "sums": dict(self._sums),
            "norm_sums": dict(self._norm_sums),
            "largest_norms": dict(self.largest_norms),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()` of another run."""
        self.steps, self._queries, self._tokens = state["steps"], state["queries"], state["tokens"]
        self._seconds = state["seconds"]
        self._sums = defaultdict(float, state["sums"])
        self._norm_sums = defaultdict(float, state["norm_sums"])
        self.largest_norms = dict(state["largest_norms"])


class Cost:
    """Time, by the clock and by device, over interruptions; steps that were lost with one are not counted.

    Args:
        processes: each of which computes on a device of its own.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._seconds_before = 0.0
        self._device_seconds_before = 0.0
        self._tracking_seconds = 0.0
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run's first step began."""
        return self._seconds_before + self._seconds_now

    @property
    def device_hours(self) -> float:
        """The same for each device, in hours, added up."""
        return (self._device_seconds_before + self._processes * self._seconds_now) / 3600

    @property
    def _seconds_now(self) -> float:
        return time.perf_counter() - self._began

    def start(self) -> None:
        """Begin to count, or to count on."""
        self._began = time.perf_counter()

    @contextmanager
    def of_tracking(self) -> Iterator[None]:
        """Count the block as time that training waits for numbers and pictures to be kept."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._tracking_seconds += time.perf_counter() - began

    def record(self) -> dict[str, float]:
        """As it is logged."""
        return {
            "time/elapsed_s": self.seconds,
            "time/device_hours": self.device_hours,
            "time/tracking_s": self._tracking_seconds,
        }

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"seconds": self.seconds, "device_seconds": self.device_hours * 3600, "tracking": self._tracking_seconds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()` of another run, on any number of processes."""
        self._seconds_before, self._device_seconds_before = state["seconds"], state["device_seconds"]
        self._tracking_seconds = state["tracking"]
        self.start()


class LoopState:
    """All that changes from step to step beside the models. Checkpoints store it whole; every process knows the same.

    Args:
        config: of the run.
        steps_per_epoch: batches that an epoch takes.
        processes: each of which computes on a device of its own.
    """

    def __init__(self, config: Config, steps_per_epoch: int, processes: int) -> None:
        curriculum = config.curriculum
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = config.train.epochs * steps_per_epoch
        self.epoch = 0
        self.batch = 0
        """Batches of this epoch so far."""
        self.step = 0
        """Steps of the run so far, those that were skipped included."""
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.gradients_checked = False
        """Whether every group of parameters was seen to get a gradient."""
        self.memory_gate = DynamicMemoryThreshold(
            curriculum.memory_threshold_start, curriculum.memory_threshold_alpha, curriculum.memory_gate
        )
        self.health = RunHealth()
        self.since_log = Interval()
        self.since_epoch = Interval()
        self.cost = Cost(processes)
        self._size_warmup = SizeWarmupCurriculum(
            start=curriculum.size_weight_start, end=curriculum.size_weight_end, epochs=curriculum.size_warmup_epochs
        )

    @property
    def ends_epoch(self) -> bool:
        """Whether all batches of this epoch are done."""
        return self.batch == self.steps_per_epoch

    @property
    def ends_run(self) -> bool:
        """Whether all steps of all epochs are done."""
        return self.step == self.total_steps

    @property
    def size_weight(self) -> float:
        """Weight of the size loss at present."""
        return self._size_warmup.weight(self.step / self.steps_per_epoch)

    def take_in(self, report: StepReport, *, seconds: float) -> None:
        """Count a step whose numbers are finite, and what it took, its wait for data included."""
        self.memory_gate.update(report.metrics["train/cell"])
        for interval in (self.since_log, self.since_epoch):
            interval.add(report, seconds=seconds)

    def begin_line(self) -> None:
        """Count the steps of the next line of the log."""
        self.since_log = Interval()

    def begin_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.batch, self.since_epoch = self.epoch + 1, 0, Interval()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "gradients_checked": self.gradients_checked,
            "memory_gate": self.memory_gate.state(),
            "health": self.health.state(),
            "since_log": self.since_log.state(),
            "since_epoch": self.since_epoch.state(),
            "cost": self.cost.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()` of another run, on any number of processes."""
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.gradients_checked = state["gradients_checked"]
        self.memory_gate.load_state(state["memory_gate"])
        self.health.load_state(state["health"])
        self.since_log.load_state(state["since_log"])
        self.since_epoch.load_state(state["since_epoch"])
        if "cost" in state:  # Checkpoints of older versions lack it.
            self.cost.load_state(state["cost"])
