"""An engine on plain Accelerate: whole parameters on every process, gradients added up after the backward passes."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from arcdist.distributed.collectives import all_reduce_sum_in_place, broadcast_in_place
from arcdist.engine.base import (
    Engine,
    OptimizerSettings,
    ParameterGroup,
    Precision,
    check_names,
    on_cpu,
    trainable,
    trained_state,
)
from arcdist.errors import ConfigError


class PlainEngine(Engine):
    """Data parallelism without a wrapper around the module, which `accelerator` places.

    All gradients travel in one message once they are complete. That costs the overlap with the backward pass, little
    where only adapters and small modules are trained; in return, methods beside `forward`, several forward passes a
    step and parameters that a step does not use need no care.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        groups: Sequence[ParameterGroup],
        settings: OptimizerSettings,
        precision: Precision,
    ) -> None:
        # In "evaluation mode" Accelerate places a module and wraps nothing around it.
        self.module = accelerator.prepare_model(module, evaluation_mode=True)
        super().__init__(groups, settings, precision)
        self.max_grad_norm = settings.max_grad_norm
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        broadcast_in_place(self._parameters)

    def __call__(self, *inputs: Any) -> Any:
        """See `Engine`."""
        with self.precision.autocast():
            return self.module(*inputs)

    def backward(self, tensor: Tensor, gradient: Tensor | None = None, *, is_last: bool = True) -> None:  # noqa: ARG002 (all is reduced at the end)
        """See `Engine`."""
        if gradient is None:
            (tensor * self.precision.loss_scale).backward()
        else:
            tensor.backward(gradient)

    def gradient_norms(self) -> dict[str, Float[Tensor, ""]]:
        """See `Engine`."""
        for parameter in self._parameters:
            # What this step did not use on this process may have been used on another.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = _gradients(self._parameters)
        all_reduce_sum_in_place(gradients)
        if self.precision.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.precision.loss_scale)
        norms = {group.name: torch.nn.utils.get_total_norm(_gradients(group.parameters)) for group in self.groups}
        self._norms = list(norms.values())
        return norms

    def step(self) -> None:
        """See `Engine`."""
        torch.nn.utils.clip_grads_with_norm_(self._parameters, self.max_grad_norm, torch.stack(self._norms).norm())
        for optimizer in self.optimizers:
            optimizer.step()
        self.schedule.steps_done += 1
        self.skip()

    def skip(self) -> None:
        """See `Engine`."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def gather_weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """See `Engine`."""
        return {name: on_cpu(value) for name, value in trained_state(self.module).items() if keep}

    def gather_moments(self, *, keep: bool = True) -> dict[str, Tensor]:
        """See `Engine`."""
        kept = {parameter: state for optimizer in self.optimizers for parameter, state in optimizer.state.items()}
        return {
            f"{name}@{moment}": on_cpu(torch.as_tensor(value))
            for name, parameter in trainable(self.module).items()
            for moment, value in kept.get(parameter, {}).items()
            if keep
        }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """See `Engine`."""
        check_names(weights, trained_state(self.module))
        try:
            self.module.load_state_dict(weights, strict=False)  # The frozen base is not among them.
        except RuntimeError as error:
            raise ConfigError(f"The weights do not fit the configured model: {error}") from error

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        """See `Engine`."""
        by_name = self.moments_of(moments) if moments else {}
        names = {id(parameter): name for name, parameter in trainable(self.module).items()}
        for optimizer in self.optimizers:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {place: by_name[names[id(parameter)]] for place, parameter in enumerate(parameters) if by_name}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
