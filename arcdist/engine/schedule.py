"""Learning rates over the steps of a run."""

from collections.abc import Callable

import torch


class Schedule:
    """Sets the learning rates of an optimizer's groups: their first ones, multiplied by a share of the step.

    The rates depend on the number of steps done and on nothing else, so a run can go on anywhere.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, share: Callable[[int], float]) -> None:
        self._optimizer = optimizer  # Loading its state replaces the groups.
        self._peaks: list[float] = [group["lr"] for group in optimizer.param_groups]
        self._share = share
        self.steps_done = 0

    @property
    def steps_done(self) -> int:
        """Steps taken so far; setting it sets the rates of the next one."""
        return self._steps_done

    @steps_done.setter
    def steps_done(self, steps: int) -> None:
        self._steps_done = steps
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._share(steps)

    def rates(self) -> list[float]:
        """Present rate of each group."""
        return [group["lr"] for group in self._optimizer.param_groups]
