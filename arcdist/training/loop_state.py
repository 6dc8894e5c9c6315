"""Where a run is, and what it has counted so far."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

from arcdist.config import Config
from arcdist.training.health import RunHealth
from arcdist.training.step import StepReport


class DynamicMemoryThreshold:
    """Gates the solver's memory by how well the run does at present.

    average <- (1 - alpha) average + alpha accuracy, beginning at `start`.
    """

    def __init__(self, start: float, alpha: float, gate: float) -> None:
        self._average = start
        self._alpha = alpha
        self._gate = gate

    @property
    def threshold(self) -> float:
        """Cell accuracy that a query must exceed: `gate` times the average. Above 1 only exact grids enter."""
        return self._gate * self._average

    def update(self, accuracy: float) -> None:
        """Move the average towards a batch's mean cell accuracy (0 to 1)."""
        self._average += self._alpha * (accuracy - self._average)

    def state(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"average": self._average}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from `state()` of another run."""
        self._average = state["average"]


@dataclass(slots=True)
class Interval:
    """Means of the metrics over queries, means and maxima of the gradient norms over steps, and the pace."""

    steps: int = 0
    queries: int = 0
    tokens: int = 0
    seconds: float = 0.0
    written: int = 0
    """Queries whose output Qwen was taught to write."""
    rewarded: int = 0
    """Views that were rewarded."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of each metric over the queries; of `lm_loss` over those written, of rewards over those rewarded."""
    norm_sums: dict[str, float] = field(default_factory=dict)
    """Of `grad_norm/<group>` over the steps."""
    largest_norms: dict[str, float] = field(default_factory=dict)
    """By group."""

    def add(self, report: StepReport, *, seconds: float) -> None:
        """Count a step and the time it took, its wait for data included."""
        self.steps += 1
        self.queries += report.queries
        self.tokens += report.tokens
        self.written += report.written
        self.rewarded += report.rewarded
        self.seconds += seconds
        for name, value in report.metrics.items():
            # By queries: the last batch of an epoch may be smaller.
            self.sums[name] = self.sums.get(name, 0.0) + value * _counted(report, name)
        for group, norm in report.group_norms.items():
            name = f"grad_norm/{group}"
            self.norm_sums[name] = self.norm_sums.get(name, 0.0) + norm
            self.largest_norms[group] = max(norm, self.largest_norms.get(group, 0.0))

    def means(self) -> dict[str, float]:
        """Every metric of the steps, `pairs_per_s` and `tokens_per_s`; only the pace if nothing was added."""
        seconds = max(self.seconds, 1e-9)
        return {
            **{name: total / max(1, _counted(self, name)) for name, total in self.sums.items()},
            "pairs_per_s": self.queries / seconds,
            "tokens_per_s": self.tokens / seconds,
        }

    def mean_norms(self) -> dict[str, float]:
        """Gradient norms by group."""
        return {name.removeprefix("grad_norm/"): total / self.steps for name, total in self.norm_sums.items()}


def _counted(of: StepReport | Interval, name: str) -> int:
    """How many a mean is over."""
    return of.written if name == "lm_loss" else of.rewarded if name.startswith("reward/") else of.queries


class Cost:
    """Time, by the clock and by device, over interruptions; steps that were lost with one are not counted.

    Args:
        processes: each of which computes on its own device.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._counted = {"seconds": 0.0, "device_seconds": 0.0, "tracking": 0.0}
        self._start = time.perf_counter()

    def start(self) -> None:
        """Begin or continue to count."""
        self._start = time.perf_counter()

    @contextmanager
    def of_tracking(self) -> Iterator[None]:
        """Count the block as time that training waits for numbers and pictures to be kept."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._counted["tracking"] += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """By the clock of this process."""
        return self.state()["seconds"]

    def record(self) -> dict[str, float]:
        """As it is logged."""
        state = self.state()
        return {
            "time/elapsed_s": state["seconds"],
            "time/device_hours": state["device_seconds"] / 3600,
            "time/tracking_s": state["tracking"],
        }

    def state(self) -> dict[str, float]:
        """What a resumed run needs."""
        now = time.perf_counter() - self._start
        return {
            "seconds": self._counted["seconds"] + now,
            "device_seconds": self._counted["device_seconds"] + self._processes * now,
            "tracking": self._counted["tracking"],
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from `state()` of another run, on any number of processes."""
        self._counted = dict(state)
        self.start()


class LoopState:
    """All that changes from step to step beside the models. Checkpoints store it whole; every process has the same.

    Args:
        config: of the run.
        steps_per_epoch: batches that an epoch takes.
        processes: each of which computes on its own device.
    """

    _NUMBERS = ("step", "epoch", "batch", "seconds", "skipped", "skipped_in_a_row", "gradients_checked")
    _PARTS = ("memory_gate", "health", "cost")
    _INTERVALS = ("since_log", "since_epoch")

    def __init__(self, config: Config, steps_per_epoch: int, processes: int) -> None:
        curriculum = self._curriculum = config.curriculum
        self.steps_per_epoch = steps_per_epoch
        minutes = config.train.budget_minutes
        self.budget = None if minutes is None else 60.0 * minutes
        """Seconds after which the run ends, in place of a number of steps."""
        self._total_steps = config.train.epochs * steps_per_epoch
        self.epoch = 0
        self.batch = 0
        """Batches of this epoch so far."""
        self.step = 0
        """Steps of the run so far, those that were skipped included."""
        self.seconds = 0.0
        """Time of the run before its last step, by the clock of process 0; all processes have the same number."""
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.gradients_checked = False
        """Whether every group of parameters was seen to get a gradient."""
        self.memory_gate = DynamicMemoryThreshold(
            curriculum.memory_threshold_start, curriculum.memory_threshold_alpha, curriculum.memory_gate
        )
        self.health = RunHealth(config.qwen.every)
        self.since_log = Interval()
        self.since_epoch = Interval()
        self.cost = Cost(processes)

    @property
    def ends_epoch(self) -> bool:
        """Whether all batches of this epoch are done, or those that there is time for."""
        return self.batch == self.steps_per_epoch or (self.batch > 0 and self.ends_run)

    @property
    def ends_run(self) -> bool:
        """Whether all steps of all epochs are done, or the time is used."""
        return self.step == self._total_steps if self.budget is None else self.seconds >= self.budget

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended, its last epoch too."""
        return self.ends_run and self.batch == 0

    @property
    def budget_used(self) -> float:
        """Share of the budget that is used, 0 to 1; 0 without a budget."""
        return 0.0 if self.budget is None else min(1.0, self.seconds / self.budget)

    @property
    def total(self) -> int:
        """Steps of the run, or seconds if it has a budget, rounded up."""
        return self._total_steps if self.budget is None else math.ceil(self.budget)

    @property
    def done(self) -> int:
        """How many of `total` are over."""
        if self.budget is None:
            return self.step
        return self.total if self.ends_run else min(int(self.seconds), self.total - 1)

    @property
    def size_weight(self) -> float:
        """Weight of the size loss, which falls linearly: cells can only be right once the grid has its size.

        w(e) = start + (end - start) min(e / size_warmup_epochs, 1), e the epochs so far, a fraction included.
        """
        start, end = self._curriculum.size_weight_start, self._curriculum.size_weight_end
        epoch, warmup = self.step / self.steps_per_epoch, self._curriculum.size_warmup_epochs
        return end if epoch >= warmup else start + (end - start) * epoch / warmup

    def add(self, report: StepReport, *, seconds: float) -> None:
        """Count a step whose numbers are finite and the time it took, its wait for data included."""
        self.memory_gate.update(report.metrics["train/cell"])
        for interval in (self.since_log, self.since_epoch):
            interval.add(report, seconds=seconds)

    def begin_line(self) -> None:
        """Count the steps of the next line of the log."""
        self.since_log = Interval()

    def begin_epoch(self) -> None:
        """Continue with the next epoch."""
        self.epoch, self.batch, self.since_epoch = self.epoch + 1, 0, Interval()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            **{name: getattr(self, name) for name in self._NUMBERS},
            **{name: getattr(self, name).state() for name in self._PARTS},
            **{name: asdict(getattr(self, name)) for name in self._INTERVALS},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()` of another run, on any number of processes."""
        for name in self._NUMBERS:
            setattr(self, name, state[name])
        for name in self._PARTS:
            getattr(self, name).load_state(state[name])
        for name in self._INTERVALS:
            setattr(self, name, Interval(**deepcopy(state[name])))
