"""What is found on the CPU here, and on GPUs that PyTorch is made to pretend."""

import warnings

import pytest
import torch

from arcdist.config import Config, QwenConfig, TrainConfig
from arcdist.doctor import device as device_module
from arcdist.doctor.device import check_device
from arcdist.doctor.finding import Verdict

GIB = 2**30

pytestmark = pytest.mark.usefixtures("clean_process")


def config(device="cpu", precision="no", dtype="float32"):
    return Config(train=TrainConfig(device=device, precision=precision, cpu_threads=1), qwen=QwenConfig(dtype=dtype))


@pytest.fixture(autouse=True)
def visible(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device_module, "_DRIVER", tmp_path / "no driver")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def gpus(monkeypatch):
    """So many GPUs; what is computed there is computed here."""

    def make(number=8, *, free=78, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA X1")
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )
        monkeypatch.setattr(device_module, "_compute", lambda _device, _precision: None)

    return make


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_cpu_computes(precision):
    finding = check_device(config(precision=precision))
    assert (finding.found, finding.verdict) == ("cpu; PyTorch sees no GPUs", Verdict.OK)


def test_wrong_products_are_found(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: torch.matmul(a, b) + 1)
    finding = check_device(config())
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert "does not compute: ArithmeticError: a product of ones" in finding.found


def test_a_build_that_does_not_fit_the_gpu_is_found(gpus, monkeypatch):
    def compute(_device, _precision):
        raise RuntimeError("no kernel image is available for execution on the device\nCompile with ...")

    gpus()
    monkeypatch.setattr(device_module, "_compute", compute)
    finding = check_device(config("cuda"))
    assert finding.verdict is Verdict.FAIL
    assert finding.found.endswith(
        "does not compute: RuntimeError: no kernel image is available for execution on the device"
    )
    assert "https://pytorch.org" in finding.advice


def test_a_gpu_is_told_with_its_memory(gpus, monkeypatch):
    gpus()
    for name, value in {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "11", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    finding = check_device(config("cuda", "bf16"))
    assert (finding.found, finding.verdict) == ("cuda:3 of 8: NVIDIA X1, 78 of 80 GiB free, bf16", Verdict.OK)


def test_a_gpu_that_others_use_is_worth_a_warning(gpus):
    gpus(1, free=60)
    finding = check_device(config("cuda"))
    assert (finding.verdict, finding.advice) == (Verdict.WARN, "nvidia-smi tells which other programs use it.")


@pytest.mark.parametrize(
    ("precision", "dtype", "warns"), [("bf16", "float32", 1), ("no", "bfloat16", 1), ("no", "float32", 0)]
)
def test_bfloat16_by_emulation_is_worth_a_warning(gpus, precision, dtype, warns):
    gpus(1, bf16=False)
    finding = check_device(config("cuda", precision, dtype))
    assert "no bf16" in finding.found
    assert (finding.verdict is Verdict.WARN) == bool(warns)
    assert ("--train.precision fp16 --qwen.dtype float32" in finding.advice) == bool(warns)


def test_more_processes_than_gpus_is_a_mistake(gpus, monkeypatch):
    gpus(2)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    finding = check_device(config("cuda"))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert "--num_processes 2" in finding.found


def test_why_there_is_no_gpu_is_told(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    finding = check_device(config("cuda"))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert finding.advice.startswith("This PyTorch is built without CUDA.")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert check_device(config("cuda")).advice.startswith("CUDA_VISIBLE_DEVICES is '-1'")


def test_what_pytorch_warns_of_is_told(monkeypatch):
    def device_count():
        warnings.warn("The NVIDIA driver on your system is too old.\nUpdate it.", stacklevel=1)
        return 0

    monkeypatch.setattr(torch.cuda, "device_count", device_count)
    for device, verdict in (("cuda", Verdict.FAIL), ("cpu", Verdict.WARN)):
        finding = check_device(config(device))
        assert finding.verdict is verdict
        assert finding.advice == "PyTorch says: The NVIDIA driver on your system is too old."


def test_a_gpu_that_lies_idle_for_want_of_cuda_is_worth_a_warning(monkeypatch, tmp_path):
    (tmp_path / "no driver").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = check_device(config("auto"))
    assert finding.verdict is Verdict.WARN
    assert "there is an NVIDIA driver" in finding.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert check_device(config("auto")).verdict is Verdict.OK
