"""The device that this process takes, and whether it computes."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from arcdist.config import Config
from arcdist.doctor.finding import Finding, failure, headline, warning
from arcdist.doctor.resources import GIB
from arcdist.engine import Precision
from arcdist.engine.device import choose_device
from arcdist.errors import ArcdistError

_DRIVER = Path("/proc/driver/nvidia/version")
_INSTALL = "Install a build of PyTorch for the device and its driver: https://pytorch.org/get-started/locally."
_SIDE = 64
_USED_BY_OTHERS = 2 * GIB
"""Memory in use on a GPU before a run, beyond what CUDA itself takes for a process."""


def check_device(config: Config) -> Finding:
    """What this process sees and takes, with a product and its gradient computed there in the run's precision."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # PyTorch warns where it cannot use a GPU that is there.
        try:
            device = choose_device(config.train)
        except ArcdistError as error:
            return failure(str(error), _why_no_gpu(said), error.exit_code)
        finding = _on_gpu(device, config) if device.type == "cuda" else _elsewhere(device, said)
    try:
        _compute(device, Precision(config.train.precision, device))
    except Exception as error:  # of the driver, of CUDA's libraries, of the compiler: each of a class of its own
        return failure(f"{finding.found}. It does not compute: {headline(error)}", _INSTALL)
    return finding


def _on_gpu(device: torch.device, config: Config) -> Finding:
    free, total = torch.cuda.mem_get_info(device)
    # With emulation PyTorch says yes for any GPU.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    found = (
        f"{device} of {torch.cuda.device_count()}: {torch.cuda.get_device_name(device)}, {free / GIB:.0f} of "
        f"{total / GIB:.0f} GiB free, {'bf16' if has_bf16 else 'no bf16'}"
    )
    if not has_bf16 and (config.train.precision == "bf16" or config.qwen.dtype == "bfloat16"):
        return warning(found, "It emulates bfloat16, slowly: take --train.precision fp16 --qwen.dtype float32.")
    if total - free > _USED_BY_OTHERS:
        return warning(found, "nvidia-smi tells which other programs use it.")
    return Finding(found=found)


def _elsewhere(device: torch.device, said: Sequence[warnings.WarningMessage]) -> Finding:
    seen = torch.cuda.device_count()
    found = f"{device}; PyTorch sees {seen or 'no'} GPU{'' if seen == 1 else 's'}"
    # Where no GPU was asked for, only one that is there and cannot be used is worth a word.
    unused = not seen and "CUDA_VISIBLE_DEVICES" not in os.environ and (said or _DRIVER.exists())
    return warning(f"{found}, but there is an NVIDIA driver", _why_no_gpu(said)) if unused else Finding(found=found)


def _why_no_gpu(said: Sequence[warnings.WarningMessage]) -> str:
    """What keeps PyTorch from the GPUs of this machine, as far as that is known."""
    if said:
        return f"PyTorch says: {str(said[0].message).partition(chr(10))[0]}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES is {hidden!r}, which may hide GPUs; launcher files set it as gpu_ids."
    if torch.version.cuda is None and torch.version.hip is None:
        return f"This PyTorch is built without CUDA. {_INSTALL}"
    return ""


def _compute(device: torch.device, precision: Precision) -> None:
    ones = torch.ones(_SIDE, _SIDE, device=device, requires_grad=True)
    with precision.autocast():
        product = ones @ ones
    product.float().sum().backward()
    assert ones.grad is not None
    expected = torch.full((_SIDE, _SIDE), float(_SIDE))
    for what, values in (("a product", product.detach()), ("its gradient", ones.grad / 2)):
        if not torch.equal(values.float().cpu(), expected):
            raise ArithmeticError(f"{what} of ones has wrong values")
