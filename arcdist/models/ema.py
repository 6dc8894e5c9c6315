"""A moving average of a module's weights, for evaluation."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class EMA(Generic[ModuleT]):
    """Holds a second copy of a module; each `update` moves it towards the trained one.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the average is of use from the first steps on.
    A decay of 0 makes `module` the trained module itself.
    """

    def __init__(self, module: ModuleT, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.trained = module
        self.module = module
        if decay > 0:
            self.module = copy.deepcopy(module).requires_grad_(False)
            self.module.eval()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the trained module's present weights."""
        self.updates = 0
        torch._foreach_copy_(list(self.module.parameters()), list(self.trained.parameters()))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the trained module's present weights."""
        if self.module is self.trained:
            return
        self.updates += 1
        share = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(self.trained.parameters()), share)
