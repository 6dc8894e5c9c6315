"""An engine on DeepSpeed ZeRO: optimizer state, gradients and, at stage 3, parameters are shared out over processes.

Only here is DeepSpeed imported; importing this module without it raises ImportError.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from jaxtyping import Float
from torch import Tensor, distributed, nn
from transformers.integrations import HfDeepSpeedConfig

from arcdist.engine.base import (
    MOMENTS,
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

_INVALID_NORM = -1.0
"""What DeepSpeed's own norms say of gradients that are not finite."""

# DeepSpeed's maintainers have to replace what it calls in PyTorch.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def zero_plugin(stage: int) -> DeepSpeedPlugin:
    """What starts Accelerate under DeepSpeed; the rest of the configuration comes with the engine."""
    return DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": stage}}, zero3_init_flag=False)


class ZeroSharding:
    """How Qwen's body comes into being where no process may hold it whole (ZeRO-3)."""

    @contextmanager
    def building(self, dtype: torch.dtype) -> Iterator[None]:
        """While it lasts, transformers builds and loads models in shards of this precision."""
        config = HfDeepSpeedConfig(
            {
                "zero_optimization": {"stage": 3},
                "bf16": {"enabled": dtype == torch.bfloat16},
                "train_micro_batch_size_per_gpu": 1,
            }
        )
        yield
        del config  # transformers looks for it through a weak reference.

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager[None]:
        """While it lasts, the parameter is whole; what process 0 writes into it is shared out at the end."""
        return deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)


class DeepSpeedEngine(Engine):
    """DeepSpeed reduces gradients and updates parameters; when to step is decided outside.

    What is trained is float32, as is the communication; forward passes run under autocast like those of any engine,
    and the frozen base keeps its own precision, so that DeepSpeed's modes for float16 and bfloat16 stay off.

    `accelerator` was started with `zero_plugin`; `config` is DeepSpeed's whole configuration, without any "auto".
    """

    in_lockstep = True

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        groups: Sequence[ParameterGroup],
        settings: OptimizerSettings,
        precision: Precision,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__(groups, settings, precision)
        (self._adamw,) = self.optimizers
        self._stage: int = config["zero_optimization"]["stage"]
        self._processes = accelerator.num_processes
        # DeepSpeed turns autocast off around a module that it runs, so it is turned on inside.
        module.forward = precision.autocast()(module.forward)  # type: ignore[operator]
        accelerator.state.deepspeed_plugin.deepspeed_config.update(config)
        self._engine, _ = accelerator.prepare(module, self._adamw)
        self.module = module
        self._zero = self._engine.optimizer

    def __call__(self, *inputs: Any) -> Any:
        """See `Engine`."""
        return self._engine(*inputs)

    def backward(self, tensor: Tensor, gradient: Tensor | None = None, *, is_last: bool = True) -> None:
        """See `Engine`."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        loss = tensor * self.precision.loss_scale if gradient is None else (tensor * gradient).sum()
        # DeepSpeed gives the mean over processes; gradients are sums here.
        self._engine.backward(loss * self._processes, scale_wrt_gas=False)

    def gradient_norms(self) -> dict[str, Float[Tensor, ""]]:
        """See `Engine`."""
        self._norms = self._zero._get_norm_groups() if self._stage == 3 else self._norms_of_partitions()
        squares: dict[str, Tensor] = {}
        for part, norm in enumerate(self._norms):
            group = self.groups[self._zero.sub_group_to_group_id[part] if self._stage == 3 else part]
            square = torch.where(norm < 0, torch.nan, norm / self.precision.loss_scale).square()
            squares[group.name] = squares[group.name] + square if group.name in squares else square
        # At stage 3, and where the optimizer is offloaded, DeepSpeed measures on the host.
        return {name: square.sqrt().to(self._engine.device) for name, square in squares.items()}

    def _norms_of_partitions(self) -> list[Tensor]:
        zero = self._zero
        if zero.cpu_offload:
            zero._wait_for_offload_copies()
            measure = zero.complete_grad_norm_calculation_for_cpu_offload
            return [torch.as_tensor(measure(parameters)) for parameters in zero.params_in_partition]
        return [
            zero.get_grad_norm_direct(zero.averaged_gradients[part], parameters)
            for part, parameters in enumerate(zero.params_in_partition)
        ]

    def step(self) -> None:
        """See `Engine`."""
        self._step_with(self._norms)
        self.schedule.steps_done += 1

    def skip(self) -> None:
        """See `Engine`."""
        # DeepSpeed drops gradients whose norm it takes for an overflow, and all that belongs to them.
        self._step_with([torch.full_like(norm, _INVALID_NORM) for norm in self._norms])

    def _step_with(self, norms: Sequence[Tensor]) -> None:
        """Have DeepSpeed step with the norms that all engines have agreed on, in place of measuring them again."""
        zero = self._zero
        measured = "_get_norm_groups" if self._stage == 3 else "scaled_global_norm"
        total = torch.stack(list(norms))
        total = torch.where((total < 0).any(), _INVALID_NORM, total.norm())
        setattr(zero, measured, lambda: norms if self._stage == 3 else total)
        zero.loss_scaler.cur_scale = self.precision.loss_scale
        try:
            self._engine.step()
        finally:
            zero.loss_scaler.cur_scale = 1.0  # `backward` is given what is scaled already.
            delattr(zero, measured)

    def gather_weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """See `Engine`."""
        parameters, weights = trainable(self.module), {}
        for name, value in trained_state(self.module).items():
            whole = safe_get_full_fp32_param(value) if name in parameters else value
            if keep:
                weights[name] = on_cpu(whole)
        return weights

    def gather_moments(self, *, keep: bool = True) -> dict[str, Tensor]:
        """See `Engine`."""
        states = list(self._adamw.state.values())
        if not states:
            return {}
        self._link_moments()
        moments = {}
        for name, parameter in trainable(self.module).items():
            for moment in MOMENTS["adamw"]:
                is_step = moment == "step"
                whole = states[0]["step"] if is_step else safe_get_full_optimizer_state(parameter, moment)
                if keep:
                    moments[f"{name}@{moment}"] = on_cpu(torch.as_tensor(whole))
        return moments

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """See `Engine`."""
        known = trained_state(self.module)
        check_names(weights, known)
        parameters = trainable(self.module)
        # In the module's order, not the weights': processes exchange something for each.
        for name, target in known.items():
            value = weights[name]
            shape = getattr(target, "ds_shape", target.shape)
            if value.shape != shape:
                raise ConfigError(
                    f"The weights do not fit the configured model: {name} has the shape {tuple(value.shape)} in place "
                    f"of {tuple(shape)}. Use the configuration that they were saved with."
                )
            with torch.no_grad():
                if name in parameters:
                    # DeepSpeed's copy for the optimizer is not the one of the forward pass, which is set beside it.
                    self._set_whole(parameters[name], value)
                    with deepspeed.zero.GatheredParameters(target, modifier_rank=0, enabled=self._stage == 3):
                        target.data.copy_(value)
                else:
                    target.copy_(value)

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        """See `Engine`."""
        if not moments:
            self._adamw.state.clear()
            return
        by_name = self.moments_of(moments)
        (steps,) = {found["step"].item() for found in by_name.values()}
        zero = self._zero
        for flat in zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups:
            self._adamw.state[flat] = {
                "step": torch.tensor(steps, dtype=torch.float32, device=flat.device),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        self._link_moments()
        for name, parameter in trainable(self.module).items():
            for moment in ("exp_avg", "exp_avg_sq"):
                self._set_whole(parameter, by_name[name][moment], moment)

    def _link_moments(self) -> None:
        if self._stage < 3:
            # DeepSpeed links parameters with their moments once, when only the first group has some.
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _set_whole(self, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
        """Write this process's part of a parameter's float32 copy, or of a moment of it."""
        if self._stage < 3:
            parameter.set_full_hp_param(value.to(parameter.device), moment)  # type: ignore[attr-defined]
            return
        # Not by DeepSpeed's own setter: that fails where a parameter cannot be shared out evenly.
        part, _ = self._zero._get_fp32_opt_state_partition(parameter, False, moment)
        start = min(part.numel() * distributed.get_rank(), value.numel())
        mine = value.flatten()[start : start + part.numel()]
        part.data[: mine.numel()].copy_(mine)

    def replicated(self) -> Iterable[Tensor]:
        """See `Engine`."""
        return () if self._stage == 3 else super().replicated()
