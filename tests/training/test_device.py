import os

import pytest
import torch

from arcdist.config import TrainConfig
from arcdist.errors import ConfigError, PlatformError
from arcdist.training.device import build_accelerator

pytestmark = pytest.mark.usefixtures("clean_process")


def train(**keywords):
    return TrainConfig(**{"device": "cpu", "cpu_threads": 1, **keywords})


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "meta"])
def test_an_unknown_device_is_a_mistake_in_the_configuration(name):
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda, cuda:N or mps") as raised:
        build_accelerator(train(device=name))
    assert repr(name) in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_gpu_that_the_machine_lacks_is_a_matter_of_the_platform():
    with pytest.raises(PlatformError, match=r"train\.device is 'cuda:99'") as raised:
        build_accelerator(train(device="cuda:99"))
    assert f"sees {torch.cuda.device_count()} CUDA devices" in str(raised.value)
    assert raised.value.exit_code == 3


def test_fp16_needs_a_gpu():
    with pytest.raises(PlatformError, match="fp16 needs a CUDA GPU, and the device is cpu: use bf16 or no"):
        build_accelerator(train(precision="fp16"))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Started as 2 processes, but a run is one process") as raised:
        build_accelerator(train())
    assert "accelerate_configs/single_gpu.yaml" in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("world_size", [None, "1"])
def test_one_process_on_the_cpu(monkeypatch, world_size):
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    accelerator = build_accelerator(train())
    assert torch.device(accelerator.device) == torch.device("cpu")
    assert accelerator.num_processes == 1
    assert accelerator.mixed_precision == "no"
    assert accelerator.scaler is None


def test_bf16_computes_in_bf16_without_a_scaler():
    accelerator = build_accelerator(train(precision="bf16"))
    with accelerator.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.bfloat16
    assert accelerator.scaler is None


def test_threads_are_as_configured_or_one_a_core_whatever_the_launcher_set():
    torch.set_num_threads(1)
    build_accelerator(train(cpu_threads=2))
    assert torch.get_num_threads() == 2
    build_accelerator(train(cpu_threads=None))
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))


def test_denormal_numbers_are_zero_on_the_cpu():
    build_accelerator(train())
    assert (torch.tensor(1e-38) * torch.tensor(1e-3)).item() == 0.0
