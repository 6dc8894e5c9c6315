"""The engines of a step, which move together or not at all."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arcdist.errors import ConfigError
from arcdist.regions import region

RateShare = Callable[[int, float], float]
"""Share of the peak learning rates, by the steps done and the share of a time budget that is used (0 to 1)."""


class Schedule:
    """Sets the learning rates of optimizers' groups: their first ones, multiplied by a share.

    The rates depend on the number of steps done, on the share of the time that is used if a run has a budget of it, and
    on nothing else, so a run can continue anywhere.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], share: RateShare) -> None:
        self._optimizers = tuple(optimizers)  # Loading their state replaces the groups.
        self._peaks = self.rates()
        self._share = share
        self._budget_used = 0.0
        self.steps_done = 0

    @property
    def steps_done(self) -> int:
        """Steps taken so far; setting it sets the rates of the next one."""
        return self._steps_done

    @steps_done.setter
    def steps_done(self, steps: int) -> None:
        self._steps_done = steps
        self._set_rates()

    @property
    def budget_used(self) -> float:
        """Share of the time budget that is used, 0 to 1; setting it sets the rates of the next step."""
        return self._budget_used

    @budget_used.setter
    def budget_used(self, share: float) -> None:
        self._budget_used = share
        self._set_rates()

    def _set_rates(self) -> None:
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["lr"] = peak * self._share(self._steps_done, self._budget_used)

    def rates(self) -> list[float]:
        """Present rate of each group."""
        return [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]


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
        self.loss_scale = 2.0**16 if self.scales_losses else 1.0
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
        elif self._good_steps == 2000:
            self.loss_scale *= 2.0
            self._good_steps = 0

    def state(self) -> dict[str, float | int]:
        """What a resumed run needs."""
        return {"scale": self.loss_scale, "good_steps": self._good_steps}

    def load_state(self, state: Mapping[str, float | int]) -> None:
        """Continue from `state()` of another run; of another precision, nothing is taken over."""
        if self.scales_losses and state["scale"] != 1.0:
            self.loss_scale, self._good_steps = float(state["scale"]), int(state["good_steps"])


MOMENTS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}
"""What each optimizer keeps of a parameter."""


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every trained parameter by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Every trained parameter and persistent buffer by name, where it is; a frozen base has no part in it."""
    # An LM head may share its weight with the embedding: under both names it is frozen.
    named = module.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if name not in frozen}


def on_cpu(value: Tensor) -> Tensor:
    """A copy that nothing else changes."""
    return value.detach().cpu().contiguous().clone()


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse weights of another model.

    Raises:
        ConfigError: a name is missing or unknown.
    """
    missing, unknown = sorted(set(known) - set(names)), sorted(set(names) - set(known))
    if missing or unknown:
        raise ConfigError(
            f"The weights do not fit the configured model: missing {missing}, unknown {unknown}. "
            f"Use the configuration that they were saved with."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Parameters that share a name in the logs, an optimizer and a peak learning rate."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon takes matrices only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """The optimizers of an engine and their schedule."""

    schedule: RateShare
    """Multiplies the peak learning rates."""
    max_grad_norm: float
    """Largest norm of all gradients of an engine together."""
    weight_decay: float
    """Decoupled."""
    betas: tuple[float, float]
    """Decays of AdamW's two moments."""

    def make(self, kind: str, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        """The optimizer of that kind for groups of parameters."""
        slots = [{"params": list(group.parameters), "lr": group.lr} for group in groups]
        if kind == "muon":
            # Momentum and the scale of an update, sqrt(max(1, rows / columns)), are those that its rates are meant for:
            # https://kellerjordan.github.io/posts/muon/
            return torch.optim.Muon(
                slots, weight_decay=self.weight_decay, momentum=0.95, nesterov=True, adjust_lr_fn="original"
            )
        return torch.optim.AdamW(slots, weight_decay=self.weight_decay, betas=self.betas, fused=True)


class Engine(ABC):
    """One module's gradients, optimizers and schedule.

    The order of a step is `backward` for each pass, `gradient_norms`, then `step` or `skip`: what the engine is asked
    in between lets several engines, on all processes, agree before a parameter of any of them moves. Gradients are
    sums over passes and processes: losses are means over the whole batch, not over a process's share. Each method is
    called by all processes together.

    Args:
        groups: every trainable parameter, once.
        settings: of the optimizers.
        precision: of the forward passes, and the scale of losses.
    """

    module: nn.Module
    """Holds all parameters, trained or not."""
    in_lockstep = False
    """Whether forward and backward passes exchange something, so that every process has to take part in each."""

    def __init__(self, groups: Sequence[ParameterGroup], settings: OptimizerSettings, precision: Precision) -> None:
        by_kind = {kind: [group for group in groups if group.optimizer == kind] for kind in MOMENTS}
        self.groups = tuple(group for of_kind in by_kind.values() for group in of_kind)
        """In the order of the optimizers."""
        self.precision = precision
        self.optimizers = tuple(settings.make(kind, of_kind) for kind, of_kind in by_kind.items() if of_kind)
        self.schedule = Schedule(self.optimizers, settings.schedule)
        """Of the learning rates; counts the steps taken, without skipped ones."""
        self._norms: list[Tensor] = []

    @abstractmethod
    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass, in the engine's precision."""

    @abstractmethod
    def backward(self, tensor: Tensor, gradient: Tensor | None = None, *, is_last: bool = True) -> None:
        """Backpropagate a loss, or a tensor from the gradient that another engine's backward gave for it.

        `is_last` marks the last pass of a step. A `gradient` is scaled already (`Precision.loss_scale`).
        """

    @abstractmethod
    def gradient_norms(self) -> dict[str, Float[Tensor, ""]]:
        """Norm of each group's gradient, before clipping, the same on all processes. Not finite where a gradient is."""

    @abstractmethod
    def step(self) -> None:
        """Clip and update. Call after `gradient_norms`, and only if every engine may step."""

    @abstractmethod
    def skip(self) -> None:
        """Drop the gradients of this step; parameters, moments and schedule stay as they are."""

    def learning_rates(self) -> dict[str, float]:
        """Present learning rate of each group."""
        return dict(zip((group.name for group in self.groups), self.schedule.rates(), strict=True))

    @abstractmethod
    def gather_weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """A whole copy of every trainable parameter and persistent buffer by name, on the CPU.

        Without `keep`, this process only takes part in gathering, and the result is empty.
        """

    @abstractmethod
    def gather_moments(self, *, keep: bool = True) -> dict[str, Tensor]:
        """The optimizers' state by `<parameter name>@<moment>`, on the CPU; empty before the first step.

        `keep` as in `gather_weights`.
        """

    @abstractmethod
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Set what `gather_weights` gave; every trainable name must be there, and no other.

        Raises:
            ConfigError: names or shapes that do not fit this module.
        """

    @abstractmethod
    def load_moments(self, moments: dict[str, Tensor]) -> None:
        """Set what `gather_moments` of any engine gave; if empty, the optimizers are as before their first step.

        Raises:
            ConfigError: a moment of a trained parameter is missing, or there are others.
        """

    def moments_of(self, moments: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Moments by parameter, from names of the kind `<parameter>@<moment>`.

        Raises:
            ConfigError: a moment of a trained parameter is missing, or there are others.
        """
        kinds = {id(parameter): group.optimizer for group in self.groups for parameter in group.parameters}
        kept = {name: MOMENTS[kinds[id(parameter)]] for name, parameter in trainable(self.module).items()}
        check_names(moments, [f"{name}@{moment}" for name in kept for moment in kept[name]])
        return {name: {moment: moments[f"{name}@{moment}"] for moment in kept[name]} for name in kept}

    def replicated(self) -> Iterable[Tensor]:
        """What every process holds a whole copy of, equal to the last bit."""
        return trained_state(self.module).values()

    def parameter_counts(self) -> tuple[int, int]:
        """Number of all parameters and of the trained ones, over all processes."""
        parameters = list(self.module.parameters())
        return count_weights(parameters), count_weights(p for p in parameters if p.requires_grad)


def count_weights(parameters: Iterable[nn.Parameter]) -> int:
    """Number of weights in parameters, over all processes."""
    # Of what ZeRO-3 shares out, DeepSpeed keeps the whole size.
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """The two worlds of a step, Qwen with its adapters and the grid modules, and the policy between them.

    Where no process has read anything in a step, Qwen is idle (`qwen_idle`): it exchanges nothing and stays as it is.
    """

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

    def gradient_norms(self, *, qwen_idle: bool = False) -> dict[str, Float[Tensor, ""]]:
        """Norms of all groups of all engines; those of an idle Qwen are 0."""
        with region("optimizer"):
            norms: dict[str, Tensor] = {}
            if qwen_idle:
                device = next(self.qwen.module.parameters()).device
                norms |= {group.name: torch.zeros((), device=device) for group in self.qwen.groups}
            for engine in self._active(qwen_idle):
                norms |= engine.gradient_norms()
            return norms

    def step(self, *, qwen_idle: bool = False) -> None:
        """Update all."""
        with region("optimizer"):
            for engine in self._active(qwen_idle):
                engine.step()
            if qwen_idle:
                # The schedules of all engines count the steps of the run.
                self.qwen.schedule.steps_done += 1
        self.precision.update(finite=True)

    def skip(self, *, qwen_idle: bool = False) -> None:
        """Update none; a loss scale that overflowed is lowered."""
        for engine in self._active(qwen_idle):
            engine.skip()
        self.precision.update(finite=False)

    def _active(self, qwen_idle: bool) -> list[Engine]:
        return [engine for engine in self.by_name().values() if not (qwen_idle and engine is self.qwen)]

    def use_budget(self, share: float) -> None:
        """Set the learning rates of the next step, of a run that has used so much of its time budget (0 to 1)."""
        for engine in self.by_name().values():
            engine.schedule.budget_used = share

    def learning_rates(self) -> dict[str, float]:
        """Present learning rates of all groups."""
        return {name: rate for engine in self.by_name().values() for name, rate in engine.learning_rates().items()}
