"""An engine on plain Accelerate: one process, any precision, a loss scaler where float16 needs one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from arcdist.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Parameters that share a name in the logs and a peak learning rate."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float


class PlainEngine:
    """One module's gradients, optimizer and schedule.

    The order of a step is `backward`, `gradient_norms`, then `step` or `skip`: what the engine is asked in between
    lets several engines agree before a parameter of any of them moves.

    Args:
        accelerator: places the module, runs it in the chosen precision and scales its gradients.
        module: holds all the parameters of `groups`.
        groups: every trainable parameter, once.
        schedule: multiplies the peak learning rates; takes the number of steps done.
        max_grad_norm: largest norm of all gradients together.
        weight_decay: decoupled (AdamW).
        betas: AdamW's decays.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        groups: Sequence[ParameterGroup],
        *,
        schedule: Callable[[int], float],
        max_grad_norm: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        self.accelerator = accelerator
        self.module: nn.Module = accelerator.prepare_model(module)
        self.groups = tuple(groups)
        self.max_grad_norm = max_grad_norm
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters), "lr": group.lr} for group in groups],
            weight_decay=weight_decay,
            betas=betas,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self._norms: list[Tensor] = []

    def autocast(self) -> AbstractContextManager[None]:
        """The precision in which forward passes of this engine run."""
        return self.accelerator.autocast()

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        """Backpropagate a loss, or a tensor from the gradient that another engine's backward gave for it."""
        if gradient is None:
            self.accelerator.backward(tensor)
        else:
            tensor.backward(gradient)  # Scaled already, by the backward pass that `gradient` comes from.

    def gradient_norms(self) -> dict[str, Float[Tensor, ""]]:
        """Norm of each group's gradient, before clipping. Not finite where a gradient is not."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        self._norms = [self._norm([p.grad for p in group.parameters if p.grad is not None]) for group in self.groups]
        return {group.name: norm for group, norm in zip(self.groups, self._norms, strict=True)}

    def _norm(self, gradients: list[Tensor]) -> Float[Tensor, ""]:
        # Of no gradients, torch gives the norm on the CPU, whatever the device.
        if not gradients:
            return torch.zeros((), device=self.accelerator.device)
        return torch.nn.utils.get_total_norm(gradients)

    def step(self) -> None:
        """Clip and update. Call after `gradient_norms`, and only if every engine may step."""
        parameters = [p for group in self.groups for p in group.parameters]
        total = torch.stack(self._norms).norm()
        torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, total)
        scaler = self.accelerator.scaler
        # A scaler refuses an optimizer without any gradient, as Qwen's is where every prompt is a cached one.
        if scaler is None or all(p.grad is None for p in parameters):
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        self.schedule.step()
        self.optimizer.zero_grad()

    def skip(self) -> None:
        """Drop the gradients of this step; parameters, moments and schedule stay as they are."""
        self.optimizer.zero_grad()

    def learning_rates(self) -> dict[str, float]:
        """Present learning rate of each group."""
        return {group.name: slot["lr"] for group, slot in zip(self.groups, self.optimizer.param_groups, strict=True)}

    def _named_trainable(self) -> dict[str, nn.Parameter]:
        module = self.accelerator.unwrap_model(self.module)
        return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}

    def _trained_state(self) -> dict[str, Tensor]:
        """Every trainable parameter and persistent buffer by name, where it is; a frozen base has no part in it."""
        module = self.accelerator.unwrap_model(self.module)
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in module.state_dict().items() if name not in frozen}

    def gather_weights(self) -> dict[str, Tensor]:
        """A copy of every trainable parameter and persistent buffer by name, on the CPU."""
        return {name: value.detach().cpu().contiguous().clone() for name, value in self._trained_state().items()}

    def gather_moments(self) -> dict[str, Tensor]:
        """The optimizer's state by `<parameter name>@<moment>`, on the CPU; empty before the first step."""
        return {
            f"{name}@{moment}": torch.as_tensor(value).detach().cpu().contiguous().clone()
            for name, parameter in self._named_trainable().items()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Set what `gather_weights` gave; every trainable name must be there, and no other.

        Raises:
            ConfigError: names or shapes that do not fit this module.
        """
        module = self.accelerator.unwrap_model(self.module)
        known = self._trained_state().keys()
        missing, unknown = sorted(known - weights.keys()), sorted(weights.keys() - known)
        if missing or unknown:
            raise ConfigError(
                f"The weights do not fit the configured model: missing {missing}, unknown {unknown}. "
                f"Use the configuration that they were saved with."
            )
        try:
            module.load_state_dict(weights, strict=False)  # The frozen base is not among them.
        except RuntimeError as error:
            raise ConfigError(f"The weights do not fit the configured model: {error}") from error


class Engines:
    """The two worlds of a step: Qwen with its adapters, and the grid modules. Both step or neither does."""

    def __init__(self, qwen: PlainEngine, grid: PlainEngine) -> None:
        self.qwen = qwen
        self.grid = grid
        self.accelerator = grid.accelerator

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return self.grid.autocast()

    def gradient_norms(self) -> dict[str, Float[Tensor, ""]]:
        """Norms of all groups of both engines."""
        return self.qwen.gradient_norms() | self.grid.gradient_norms()

    def step(self) -> None:
        """Update both."""
        self.qwen.step()
        self.grid.step()
        self._update_scale()

    def skip(self) -> None:
        """Update neither; a loss scale that overflowed is lowered."""
        self.qwen.skip()
        self.grid.skip()
        self._update_scale()

    def _update_scale(self) -> None:
        # Once for both: a scaler forgets at its update which optimizers it has unscaled.
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()

    def learning_rates(self) -> dict[str, float]:
        """Present learning rates of all groups."""
        return self.qwen.learning_rates() | self.grid.learning_rates()
