import os

import pytest
import torch

from arcdist.config import TrainConfig
from arcdist.engine.device import choose_device
from arcdist.errors import ConfigError, PlatformError

pytestmark = pytest.mark.usefixtures("clean_process")


def train(**keywords):
    return TrainConfig(**{"device": "cpu", "cpu_threads": 1, **keywords})


@pytest.fixture
def processes(monkeypatch):
    """Be one of several processes, as a launcher says it."""

    def start(world_size, *, on_this_machine=None, local_rank=0):
        here = on_this_machine or world_size
        names = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": here, "LOCAL_RANK": local_rank, "RANK": local_rank}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return start


@pytest.fixture
def gpus(monkeypatch):
    """Be a machine with so many GPUs, as far as PyTorch is asked."""

    def install(count, *, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)

    return install


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "meta"])
def test_an_unknown_device_is_a_mistake_in_the_configuration(name):
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda, cuda:N or mps") as raised:
        choose_device(train(device=name))
    assert repr(name) in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_gpu_that_the_machine_lacks_is_a_matter_of_the_platform():
    with pytest.raises(PlatformError, match=r"train\.device is 'cuda:99'") as raised:
        choose_device(train(device="cuda:99"))
    assert f"sees {torch.cuda.device_count()} CUDA devices" in str(raised.value)
    assert raised.value.exit_code == 3


def test_fp16_needs_a_gpu(gpus):
    with pytest.raises(PlatformError, match="fp16 needs a CUDA GPU, and the device is cpu: use bf16 or no"):
        choose_device(train(precision="fp16"))
    gpus(1)
    assert choose_device(train(precision="fp16", device="cuda")) == torch.device("cuda", 0)


def test_bf16_on_a_gpu_that_lacks_it_names_what_to_use(gpus):
    gpus(1, bf16=False)
    with pytest.raises(PlatformError, match=r"no bfloat16: use --train\.precision fp16 --qwen\.dtype float32"):
        choose_device(train(device="cuda", precision="bf16"))
    assert choose_device(train(device="cpu", precision="bf16")) == torch.device("cpu")


@pytest.mark.parametrize("world_size", [None, "1"])
def test_one_process_on_the_cpu(monkeypatch, world_size):
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    assert choose_device(train()) == torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one(gpus):
    gpus(2)
    assert choose_device(train(device="auto")) == torch.device("cuda", 0)
    assert choose_device(train(device="cuda:1")) == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_of_several_processes_each_takes_the_gpu_of_its_number(processes, gpus, name):
    gpus(2)
    for local_rank in range(2):
        # The second of two machines: the number among all is no number of a GPU.
        processes(4, on_this_machine=2, local_rank=local_rank)
        assert choose_device(train(device=name)) == torch.device("cuda", local_rank)


@pytest.mark.parametrize(("found", "text"), [(1, "sees 1 GPU: start one"), (2, "sees 2 GPUs: start one")])
def test_more_processes_than_gpus_are_refused(processes, gpus, found, text):
    gpus(found)
    processes(3)
    with pytest.raises(ConfigError, match="3 processes were started on a machine where PyTorch") as raised:
        choose_device(train(device="auto"))
    assert text in str(raised.value)
    assert f"--num_processes {found}, or use --device cpu." in str(raised.value)
    assert choose_device(train(device="cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:1", "cuda:0"])
def test_several_processes_cannot_share_a_named_gpu(processes, gpus, name):
    gpus(4)
    processes(2)
    with pytest.raises(ConfigError, match="the run has 2 processes, which cannot share it: choose cuda") as raised:
        choose_device(train(device=name))
    assert repr(name) in str(raised.value)


def test_threads_are_as_configured_or_one_a_core_whatever_the_launcher_set():
    torch.set_num_threads(1)
    choose_device(train(cpu_threads=2))
    assert torch.get_num_threads() == 2
    choose_device(train(cpu_threads=None))
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))


def test_processes_of_a_machine_share_its_cores(processes, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    for here, threads in ((2, 4), (3, 2), (16, 1)):
        processes(16, on_this_machine=here)
        choose_device(train(cpu_threads=None))
        assert torch.get_num_threads() == threads
    choose_device(train(cpu_threads=2))  # of each process
    assert torch.get_num_threads() == 2


def test_denormal_numbers_are_zero_on_the_cpu():
    choose_device(train())
    assert (torch.tensor(1e-38) * torch.tensor(1e-3)).item() == 0.0
