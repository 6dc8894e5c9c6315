"""The device and the precision that a run computes on."""

import os
import re

import torch
from accelerate import Accelerator

from arcdist.config import TrainConfig
from arcdist.errors import ConfigError, PlatformError

_DEVICES = "choose auto, cpu, cuda, cuda:N or mps"


def build_accelerator(train: TrainConfig) -> Accelerator:
    """Start Accelerate on the configured device, in the configured precision.

    Raises:
        ConfigError: no such device, or several processes.
        PlatformError: this machine lacks the device or the precision.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"Started as {os.environ['WORLD_SIZE']} processes, but a run is one process: use `accelerate launch "
            f"--config_file accelerate_configs/single_gpu.yaml` (or cpu.yaml), or `--num_processes 1`."
        )
    device = _device(train.device)
    if train.precision == "fp16" and device.type != "cuda":
        raise PlatformError(f"--train.precision fp16 needs a CUDA GPU, and the device is {device}: use bf16 or no.")
    if train.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise PlatformError("This GPU has no bfloat16: use --train.precision fp16 --qwen.dtype float32.")
    if device.type == "cpu":
        _prepare_cpu(train.cpu_threads)
    # Accelerate takes a device other than its own choice from the environment only.
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    return Accelerator(mixed_precision=train.precision, cpu=device.type == "cpu")


def _prepare_cpu(threads: int | None) -> None:
    # `accelerate launch` sets OMP_NUM_THREADS=1 where the user has set nothing.
    torch.set_num_threads(threads or _cores())
    # Probabilities of colours that the agent has ruled out, and their gradients, are denormal numbers, with which
    # processors compute some 20 times slower. The threads of PyTorch's pool take this over when they are started.
    torch.set_flush_denormal(True)


def _cores() -> int:
    # Not every system tells which cores a process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(name: str) -> torch.device:
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
