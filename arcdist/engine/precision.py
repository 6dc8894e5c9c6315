"""The precision of forward passes, and the scale that float16's gradients need."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch

_FIRST_SCALE = 2.0**16
_STEPS_BETWEEN_DOUBLINGS = 2000

_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast to `no`, `bf16` or `fp16` on a device type; what is trained stays float32.

    Under fp16, losses are multiplied by `loss_scale` before the backward pass, so that small gradients do not vanish.
    The scale is halved by a step whose gradients overflowed and doubled after 2,000 good ones. It is a number of the
    host, the same on all processes and for all engines, since they step together or not at all.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.dtype = _DTYPES[name]
        self.device_type = device.type
        self.loss_scale = _FIRST_SCALE if self.scales_losses else 1.0
        self._good_steps = 0

    @property
    def scales_losses(self) -> bool:
        """Whether gradients may overflow, so that a skipped step now and then is in order."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager[None]:
        """The context, or decorator, of a forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def update(self, *, finite: bool) -> None:
        """Take in whether a step's gradients were finite."""
        if not self.scales_losses:
            return
        self._good_steps = self._good_steps + 1 if finite else 0
        if not finite:
            self.loss_scale /= 2.0
        elif self._good_steps == _STEPS_BETWEEN_DOUBLINGS:
            self.loss_scale *= 2.0
            self._good_steps = 0

    def state(self) -> dict[str, float | int]:
        """What a resumed run needs."""
        return {"scale": self.loss_scale, "good_steps": self._good_steps}

    def load_state(self, state: Mapping[str, float | int]) -> None:
        """Go on from `state()` of another run; from one of another precision, nothing is taken over."""
        if self.scales_losses and state["scale"] != 1.0:
            self.loss_scale, self._good_steps = float(state["scale"]), int(state["good_steps"])
