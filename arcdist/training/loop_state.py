"""Where a run is, and what it has counted on the way."""

from collections.abc import Mapping
from typing import Any

from arcdist.config import Config
from arcdist.training.cost import Cost
from arcdist.training.curriculum import DynamicMemoryThreshold, SizeWarmupCurriculum
from arcdist.training.health import RunHealth
from arcdist.training.interval import Interval
from arcdist.training.step import StepReport


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
