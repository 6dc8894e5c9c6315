"""What changes over a run by rule: the weight of the size loss and the gate of the solver's memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

# B queries.


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

    def admits(self, accuracy: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Which queries enter the memory, by their cell accuracy (0 to 1).

        An exact grid always enters: once the average passes 1 / gate, the threshold lies out of anyone's reach.
        """
        return (accuracy > self.threshold) | (accuracy >= 1.0)

    def update(self, accuracy: float) -> None:
        """Move the average towards a batch's mean cell accuracy (0 to 1)."""
        self._average += self.alpha * (accuracy - self._average)

    def state(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"average": self._average}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from `state()` of another run."""
        self._average = state["average"]
