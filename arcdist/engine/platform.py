"""Accelerate, started as the launcher and the configuration say: one process or several, with DeepSpeed or without."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in its __all__

from arcdist.config import Config
from arcdist.distributed import local_rank, rank, world_size
from arcdist.distributed.environment import attempt, is_restart, launcher_keeps_store, store_address
from arcdist.engine.deepspeed_config import effective_deepspeed_config, read_deepspeed_config
from arcdist.engine.device import choose_device
from arcdist.engine.launch_settings import check_launch_settings, deepspeed_config_file
from arcdist.errors import ConfigError, PlatformError
from arcdist.models import UNSHARDED, Sharding


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """What a run computes on."""

    accelerator: Accelerator
    sharding: Sharding
    """How Qwen's frozen base is shared out."""
    zero_file: str | None
    """The DeepSpeed configuration that the launcher named; none means no DeepSpeed."""
    zero: Mapping[str, Any] | None
    """Its content, as written."""

    def zero_config(self, config: Config, hidden_size: int) -> dict[str, Any] | None:
        """DeepSpeed's whole configuration, every "auto" filled in from the run's; none without DeepSpeed."""
        if self.zero is None or self.zero_file is None:
            return None
        processes, passes = self.accelerator.num_processes, config.train.accumulation
        largest_part = math.ceil(config.train.batch_size / processes)
        return effective_deepspeed_config(
            self.zero,
            self.zero_file,
            micro_batch_size=math.ceil(largest_part / passes),
            processes=processes,
            accumulation=passes,
            max_grad_norm=config.optim.max_grad_norm,
            hidden_size=hidden_size,
            lora_r=config.qwen.lora_r,
        )


def start_platform(config: Config) -> Platform:
    """Start Accelerate on the configured device and, with several processes, their process group.

    Raises:
        ConfigError: the launcher and the configuration contradict each other, or cannot go together.
        PlatformError: this machine lacks the device, the precision or a package.
    """
    check_launch_settings(config)
    shares = world_size() * config.train.accumulation
    if config.train.batch_size < shares:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, less than {world_size()} processes x "
            f"train.accumulation = {config.train.accumulation} passes need: raise --batch_size to {shares}, lower "
            f"--train.accumulation, or start fewer processes."
        )
    zero_file = deepspeed_config_file()
    zero = None if zero_file is None else read_deepspeed_config(zero_file)
    device = choose_device(config.train)
    if zero is not None and str(device) not in ("cpu", f"cuda:{local_rank()}"):
        raise ConfigError(
            f"train.device is {device}, but under DeepSpeed ({zero_file}) a process computes on the CPU or on the CUDA "
            f"GPU of its number, here cuda:{local_rank()}: hide the other GPUs with CUDA_VISIBLE_DEVICES, choose "
            f"--device cpu, or launch with accelerate_configs/single_gpu.yaml, which needs no DeepSpeed."
        )
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if world_size() == 1 or device.type == "cpu":
        # Accelerate takes a device other than its own choice from the environment only.
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    group = InitProcessGroupKwargs(
        # Without CUDA, DeepSpeed takes every process for the only one unless the backend is named.
        backend="nccl" if device.type == "cuda" else "gloo",
        timeout=timedelta(seconds=config.distributed.timeout),
    )
    if is_restart():
        _meet_anew(group)
    if zero is None:
        cpu = device.type == "cpu"
        handlers = [group] if world_size() > 1 else []
        return Platform(
            # The precision of forward passes is the engines', with and without DeepSpeed.
            accelerator=Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=handlers),
            sharding=UNSHARDED,
            zero_file=None,
            zero=None,
        )
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        from arcdist.engine.deepspeed import ZeroSharding, zero_plugin
    except ImportError as error:
        raise PlatformError(
            f"{zero_file} asks for DeepSpeed, which cannot be imported ({error}): install it with "
            f"`pip install 'arcdist[deepspeed]'` (in a checkout `pip install '.[deepspeed]'`), or launch with "
            f"accelerate_configs/multi_gpu.yaml, which needs none."
        ) from error
    # The plugin refuses a configuration from code while the launcher's stands in the environment.
    os.environ.pop("ACCELERATE_DEEPSPEED_CONFIG_FILE", None)
    stage = zero["zero_optimization"]["stage"]
    return Platform(
        accelerator=Accelerator(
            mixed_precision="no",
            # Only to keep Accelerate from warning that DeepSpeed is told something else.
            gradient_accumulation_steps=config.train.accumulation,
            deepspeed_plugin=zero_plugin(stage),
            kwargs_handlers=[group],
        ),
        sharding=ZeroSharding() if stage == 3 else UNSHARDED,
        zero_file=zero_file,
        zero=zero,
    )


def _meet_anew(group: InitProcessGroupKwargs) -> None:
    """Form the process group under keys of this attempt: the launcher's store still has those of the one that failed.

    PyTorch would read them, and look for processes that are gone (its static rendezvous keeps one store for all).
    """
    address = store_address()
    if address is None or not launcher_keeps_store():
        return
    store = TCPStore(*address, timeout=group.timeout, wait_for_workers=False)
    distributed.init_process_group(
        group.backend,
        store=PrefixStore(f"arcdist/{attempt()}/group", store),
        rank=rank(),
        world_size=world_size(),
        timeout=group.timeout,
    )
