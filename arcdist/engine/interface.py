"""What an engine does, whatever runs beneath it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arcdist.engine.schedule import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Parameters that share a name in the logs and a peak learning rate."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """AdamW and its schedule."""

    schedule: Callable[[int], float]
    """Multiplies the peak learning rates; takes the number of steps done."""
    max_grad_norm: float
    """Largest norm of all gradients of an engine together."""
    weight_decay: float
    """Decoupled."""
    betas: tuple[float, float]
    """Decays of the two moments."""

    def make_optimizer(self, groups: Sequence[ParameterGroup]) -> torch.optim.AdamW:
        """AdamW with a slot a group, at the groups' peak learning rates."""
        slots = [{"params": list(group.parameters), "lr": group.lr} for group in groups]
        return torch.optim.AdamW(slots, weight_decay=self.weight_decay, betas=self.betas, fused=True)


@runtime_checkable
class Engine(Protocol):
    """One module's gradients, optimizer and schedule.

    The order of a step is `backward` for each pass, `gradient_norms`, then `step` or `skip`: what the engine is asked
    in between lets several engines, on all processes, agree before a parameter of any of them moves. Gradients are
    sums over passes and processes: losses are means over the whole batch, not over a process's share. Each method is
    called by all processes together.
    """

    module: nn.Module
    """Holds all parameters, trained or not."""
    schedule: Schedule
    """Of the learning rates; counts the steps taken, without skipped ones."""
    in_lockstep: bool
    """Whether forward and backward passes exchange something, so that every process has to take part in each."""

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass, in the engine's precision."""

    def backward(self, tensor: Tensor, gradient: Tensor | None = None, *, is_last: bool = True) -> None:
        """Backpropagate a loss, or a tensor from the gradient that another engine's backward gave for it.

        `is_last` marks the last pass of a step. A `gradient` is scaled already (`Precision.loss_scale`).
        """

    def gradient_norms(self) -> dict[str, Float[Tensor, ""]]:
        """Norm of each group's gradient, before clipping, the same on all processes. Not finite where a gradient is."""

    def step(self) -> None:
        """Clip and update. Call after `gradient_norms`, and only if every engine may step."""

    def skip(self) -> None:
        """Drop the gradients of this step; parameters, moments and schedule stay as they are."""

    def learning_rates(self) -> dict[str, float]:
        """Present learning rate of each group."""

    def gather_weights(self) -> dict[str, Tensor]:
        """A whole copy of every trainable parameter and persistent buffer by name, on the CPU."""

    def gather_moments(self) -> dict[str, Tensor]:
        """The optimizer's state by `<parameter name>@<moment>`, on the CPU; empty before the first step."""

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Set what `gather_weights` gave; every trainable name must be there, and no other.

        Raises:
            ConfigError: names or shapes that do not fit this module.
        """

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        """Set what `gather_moments` of any engine gave; none of them, and the optimizer is as before its first step.

        Raises:
            ConfigError: a moment of a trained parameter is missing, or there are others.
        """

    def replicated(self) -> Iterable[Tensor]:
        """What every process holds a whole copy of, equal to the last bit."""

    def parameter_counts(self) -> tuple[int, int]:
        """Number of all parameters and of the trained ones, over all processes."""
