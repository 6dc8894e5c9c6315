"""Accelerate, started as the launcher and the configuration say: one process or several, with DeepSpeed or without."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in its __all__

from arcdist.config import Config, TrainConfig
from arcdist.config.keys import flatten
from arcdist.distributed import local_rank, local_world_size, rank, world_size
from arcdist.distributed.environment import is_restart, launcher_keeps_store, store_address, store_key
from arcdist.engine.deepspeed_config import effective_deepspeed_config, read_deepspeed_config
from arcdist.errors import ConfigError, PlatformError, reason
from arcdist.host import usable_cores
from arcdist.models import UNSHARDED, Sharding

_DEVICES = "choose auto, cpu, cuda, cuda:N or mps"


def choose_device(train: TrainConfig) -> torch.device:
    """This process's device. If several share a machine, each takes the GPU of its number.

    Raises:
        ConfigError: no such device, or more processes than there are GPUs.
        PlatformError: this machine lacks the device, or the device the precision.
    """
    device = _named_device(train.device)
    if world_size() > 1:
        device = _device_of_several(device, train.device)
    if train.precision == "fp16" and device.type != "cuda":
        raise PlatformError(f"--train.precision fp16 needs a CUDA GPU, and the device is {device}: use bf16 or no.")
    if train.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise PlatformError("This GPU has no bfloat16: use --train.precision fp16 --qwen.dtype float32.")
    if device.type == "cpu":
        # `accelerate launch` sets OMP_NUM_THREADS=1 if the user has set nothing.
        torch.set_num_threads(train.cpu_threads or max(1, usable_cores() // local_world_size()))
        # Probabilities of colours that the agent has ruled out, and their gradients, are denormal numbers, with which
        # processors compute some 20 times slower. The threads of PyTorch's pool take this over when they start.
        torch.set_flush_denormal(True)
    return device


def device_name(device: torch.device) -> str:
    """What a device is, such as `NVIDIA H200` or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _named_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise ConfigError(f"train.device is {name!r}, which is no device: {_DEVICES}.")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise PlatformError(f"train.device is 'mps', which this machine lacks: {_DEVICES}.")
    if device.type != "cuda":
        return device
    found, index = torch.cuda.device_count(), device.index or 0
    if index >= found:
        raise PlatformError(
            f"train.device is {name!r}, and PyTorch sees {found} CUDA devices on this machine: "
            f"{_DEVICES}, or check the driver with nvidia-smi."
        )
    return torch.device("cuda", index)


def _device_of_several(device: torch.device, name: str) -> torch.device:
    if device.type == "mps" or ":" in name:
        raise ConfigError(
            f"train.device is {name!r}, and the run has {world_size()} processes, which cannot share it: choose cuda "
            f"(each takes a GPU of its own) or cpu, or start one process."
        )
    if device.type == "cpu":
        return device
    found = torch.cuda.device_count()
    if local_world_size() > found:
        raise ConfigError(
            f"{local_world_size()} processes were started on a machine where PyTorch sees {found} "
            f"GPU{'' if found == 1 else 's'}: start one a GPU with --num_processes {found}, or use --device cpu."
        )
    return torch.device("cuda", local_rank())


_OTHER_PARADIGMS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
    "ACCELERATE_IN_TPU_POD": "TPUs",
}

# What a DeepSpeed file says, given to the launcher beside it. Accelerate refuses these in its own file, and takes no
# notice of most of them as flags.
_ZERO_FIELDS = {
    "zero_stage": "zero_optimization.stage",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_optimizer_nvme_path": "zero_optimization.offload_optimizer.nvme_path",
    "offload_param_device": "zero_optimization.offload_param.device",
    "offload_param_nvme_path": "zero_optimization.offload_param.nvme_path",
    "zero3_save_16bit_model": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}

# The launcher's fields that the run configuration has as well, with the value that says nothing. Beside a DeepSpeed
# file, Accelerate refuses them in its own file, with any value.
_RUN_FIELDS = {
    "mixed_precision": ("train.precision", "no"),
    "gradient_accumulation_steps": ("train.accumulation", "auto"),
    "gradient_clipping": ("optim.max_grad_norm", "auto"),
}


def deepspeed_config_file() -> str | None:
    """The DeepSpeed configuration file that the launcher names; None if it does not use DeepSpeed.

    Raises:
        ConfigError: DeepSpeed without such a file.
    """
    if not _is_set("ACCELERATE_USE_DEEPSPEED"):
        return None
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        raise ConfigError(
            "The launcher asks for DeepSpeed (distributed_type DEEPSPEED, or --use_deepspeed) without a "
            "deepspeed_config_file: launch with accelerate_configs/zero2.yaml, whose file is ds_configs/zero2.json, or "
            "name one of ds_configs/ in yours. Its fields (zero_stage, ...) are read from such a file only."
        )
    return file


def check_launch_settings(config: Config) -> None:
    """Refuse a launch that says something else than the run configuration, or that no run can have.

    Raises:
        ConfigError: the first such setting; the message names both places and both values.
    """
    for variable, paradigm in _OTHER_PARADIGMS.items():
        if _is_set(variable):
            raise ConfigError(
                f"The launcher asks for {paradigm}, which is not supported: launch with "
                f"accelerate_configs/multi_gpu.yaml, or with zero2.yaml there for DeepSpeed."
            )
    values = flatten(config)
    for field, (key, default) in _RUN_FIELDS.items():
        given = os.environ.get(f"ACCELERATE_{field.upper()}", default)
        if given != default and _number(given) != values[key]:
            raise _contradiction(field, given, key, values[key])
    if _is_set("ACCELERATE_USE_CPU") and config.train.device not in ("auto", "cpu"):
        raise _contradiction("use_cpu", "true", "train.device", config.train.device)
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise ConfigError(
            f"The launcher's dynamo_backend is {backend}, but compiled models are not supported: take it out of its "
            f"file, or leave out --dynamo_backend."
        )
    file = deepspeed_config_file()
    if file is None:
        return
    in_launcher_file = os.environ.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(",")
    for field, key in _ZERO_FIELDS.items():
        if field in in_launcher_file or f"ACCELERATE_DEEPSPEED_{field.upper()}" in os.environ:
            raise ConfigError(
                f"The launcher has a {field} beside the deepspeed_config_file {file}: take it out of the launcher's "
                f"file or flags, and write {key} in {file}."
            )
    for field, (key, _) in _RUN_FIELDS.items():
        if field in in_launcher_file:
            raise ConfigError(
                f"The launcher's file has {field}, which Accelerate refuses beside the deepspeed_config_file {file}: "
                f"take it out there. The run configuration has it as {key}."
            )


def _contradiction(field: str, given: str, key: str, value: object) -> ConfigError:
    return ConfigError(
        f"The launcher's {field} is {given}, but {key} is {value}: take {field} out of the launcher's file or flags, "
        f"and choose with --{key}."
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


def _number(text: str) -> float | str:
    """A number as such, and a word as it is."""
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """What a run computes on."""

    accelerator: Accelerator
    sharding: Sharding
    """How Qwen's frozen base is shared out."""
    zero_file: str | None = None
    """The DeepSpeed configuration that the launcher named."""
    zero: Mapping[str, Any] | None = None
    """Its content, as written; None without DeepSpeed."""

    def zero_config(self, config: Config, hidden_size: int) -> dict[str, Any] | None:
        """DeepSpeed's whole configuration, every "auto" filled in from the run's; None without DeepSpeed."""
        if self.zero is None or self.zero_file is None:
            return None
        processes = self.accelerator.num_processes
        return effective_deepspeed_config(
            self.zero, self.zero_file, config, processes=processes, hidden_size=hidden_size
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
    zero = read_deepspeed_config(zero_file) if zero_file else None
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
    if is_restart() and launcher_keeps_store() and (address := store_address()):
        # The launcher's store still has the keys of the start that failed. PyTorch would read them, and look for
        # processes that are gone: this one forms the process group under keys of its own.
        store = TCPStore(*address, timeout=group.timeout, wait_for_workers=False)
        distributed.init_process_group(
            group.backend,
            store=PrefixStore(store_key("group"), store),
            rank=rank(),
            world_size=world_size(),
            timeout=group.timeout,
        )
    # The precision of forward passes is the engines', with and without DeepSpeed.
    if zero is None:
        handlers = [group] if world_size() > 1 else []
        accelerator = Accelerator(mixed_precision="no", cpu=device.type == "cpu", kwargs_handlers=handlers)
        return Platform(accelerator=accelerator, sharding=UNSHARDED)
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        from arcdist.engine.deepspeed import ZeroSharding, zero_plugin
    except ImportError as error:
        raise PlatformError(
            f"{zero_file} asks for DeepSpeed, which cannot be imported ({reason(error)}): install it with "
            f"`pip install 'arcdist[deepspeed]'` (in a checkout `pip install '.[deepspeed]'`), or launch with "
            f"accelerate_configs/multi_gpu.yaml, which needs none."
        ) from error
    # The plugin refuses a configuration from code while the environment has the launcher's.
    os.environ.pop("ACCELERATE_DEEPSPEED_CONFIG_FILE", None)
    stage = zero["zero_optimization"]["stage"]
    accelerator = Accelerator(
        mixed_precision="no",
        # Only to keep Accelerate from warning that DeepSpeed's configuration differs.
        gradient_accumulation_steps=config.train.accumulation,
        deepspeed_plugin=zero_plugin(stage),
        kwargs_handlers=[group],
    )
    sharding = ZeroSharding() if stage == 3 else UNSHARDED
    return Platform(accelerator=accelerator, sharding=sharding, zero_file=zero_file, zero=zero)
