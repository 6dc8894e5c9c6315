"""The engines of a step, which move together or not at all."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from arcdist.engine.interface import Engine
from arcdist.engine.precision import Precision
from arcdist.regions import region


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """The two worlds of a step, Qwen with its adapters and the grid modules, and the policy between them."""

    qwen: Engine
    grid: Engine
    refiner: Engine
    precision: Precision

    def by_name(self) -> dict[str, Engine]:
        """All engines, in the order in which they are asked."""
        return {"qwen": self.qwen, "grid": self.grid, "refiner": self.refiner}

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return self.precision.autocast()

    def gradient_norms(self) -> dict[str, Float[Tensor, ""]]:
        """Norms of all groups of all engines."""
        with region("optimizer"):
            return {name: norm for engine in self.by_name().values() for name, norm in engine.gradient_norms().items()}

    def step(self) -> None:
        """Update all."""
        with region("optimizer"):
            for engine in self.by_name().values():
                engine.step()
        self.precision.update(finite=True)

    def skip(self) -> None:
        """Update none; a loss scale that overflowed is lowered."""
        for engine in self.by_name().values():
            engine.skip()
        self.precision.update(finite=False)

    def learning_rates(self) -> dict[str, float]:
        """Present learning rates of all groups."""
        return {name: rate for engine in self.by_name().values() for name, rate in engine.learning_rates().items()}
