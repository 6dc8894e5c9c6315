"""The device that this process computes on."""

import re

import torch

from arcdist.config import TrainConfig
from arcdist.distributed import local_rank, local_world_size, world_size
from arcdist.errors import ConfigError, PlatformError
from arcdist.machine import usable_cores

_DEVICES = "choose auto, cpu, cuda, cuda:N or mps"


def choose_device(train: TrainConfig) -> torch.device:
    """This process's device. Where several share a machine, each takes the GPU of its number.

    Raises:
        ConfigError: no such device, or more processes than there are GPUs.
        PlatformError: this machine lacks the device, or the device the precision.
    """
    device = _named(train.device)
    if world_size() > 1:
        device = _of_several(device, train.device)
    if train.precision == "fp16" and device.type != "cuda":
        raise PlatformError(f"--train.precision fp16 needs a CUDA GPU, and the device is {device}: use bf16 or no.")
    if train.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise PlatformError("This GPU has no bfloat16: use --train.precision fp16 --qwen.dtype float32.")
    if device.type == "cpu":
        _prepare_cpu(train.cpu_threads)
    return device


def device_name(device: torch.device) -> str:
    """What a device is, such as `NVIDIA H200` or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _of_several(device: torch.device, name: str) -> torch.device:
    if device.type == "mps" or ":" in name:
        raise ConfigError(
            f"train.device is {name!r}, and the run has {world_size()} processes, which cannot share it: choose cuda "
            f"(each takes a GPU of its own) or cpu, or start one process."
        )
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if local_world_size() > found:
            raise ConfigError(
                f"{local_world_size()} processes were started on a machine where PyTorch sees {found} "
                f"GPU{'' if found == 1 else 's'}: start one a GPU with --num_processes {found}, or use --device cpu."
            )
        return torch.device("cuda", local_rank())
    return device


def _prepare_cpu(threads: int | None) -> None:
    # `accelerate launch` sets OMP_NUM_THREADS=1 where the user has set nothing.
    torch.set_num_threads(threads or max(1, usable_cores() // local_world_size()))
    # Probabilities of colours that the agent has ruled out, and their gradients, are denormal numbers, with which
    # processors compute some 20 times slower. The threads of PyTorch's pool take this over when they are started.
    torch.set_flush_denormal(True)


def _named(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise ConfigError(f"train.device is {name!r}, which is no device: {_DEVICES}.")
    device = torch.device(name)
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise PlatformError(
                f"train.device is {name!r}, and PyTorch sees {found} CUDA devices on this machine: "
                f"{_DEVICES}, or check the driver with nvidia-smi."
            )
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise PlatformError(f"train.device is 'mps', which this machine lacks: {_DEVICES}.")
    return device
