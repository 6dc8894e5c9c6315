"""What a run is started on, and which launches are refused. Several processes are tested through their launchers."""

import json
import os
import sys

import pytest
import torch

from arcdist.config import load_config
from arcdist.engine.platform import start_platform
from arcdist.errors import ConfigError, PlatformError
from arcdist.models import UNSHARDED

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture
def config(tiny_flags):
    return lambda *flags: load_config([*tiny_flags, *flags]).config


@pytest.fixture
def zero_file(tmp_path, monkeypatch):
    """A DeepSpeed configuration that the launcher names."""
    path = tmp_path / "zero.json"
    path.write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": 2},
                "train_batch_size": "auto",
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
            }
        )
    )
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    return path


def test_one_process_is_plain_accelerate_on_the_configured_device(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")  # of a run before
    platform = start_platform(config())
    accelerator = platform.accelerator
    assert torch.device(accelerator.device) == torch.device("cpu")
    assert accelerator.num_processes == 1
    assert not torch.distributed.is_initialized()
    assert platform.sharding is UNSHARDED
    assert platform.zero is None
    assert platform.zero_config(config(), 32) is None
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_precision_of_forward_passes_is_the_engines_affair(config, monkeypatch, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    accelerator = start_platform(config(f"--train.precision={precision}")).accelerator
    assert accelerator.mixed_precision == "no"
    assert accelerator.scaler is None


def test_deepspeed_computes_on_the_cpu_or_on_the_gpu_of_its_number(config, zero_file, monkeypatch):
    monkeypatch.setattr("arcdist.engine.platform.choose_device", lambda train: torch.device("cuda", 1))
    with pytest.raises(ConfigError, match=r"train\.device is cuda:1, but under DeepSpeed \(.*zero\.json\)") as raised:
        start_platform(config())
    assert "here cuda:0: hide the other GPUs with CUDA_VISIBLE_DEVICES" in str(raised.value)


@pytest.mark.parametrize(
    ("world_size", "accumulation", "batch_size", "needed"),
    [(1, 5, 4, 5), (2, 1, 1, 2), (3, 2, 5, 6)],
)
def test_a_batch_needs_a_query_for_every_process_and_pass(
    config, monkeypatch, world_size, accumulation, batch_size, needed
):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    chosen = config(f"--batch_size={batch_size}", f"--train.accumulation={accumulation}")
    with pytest.raises(ConfigError, match=rf"train\.batch_size is {batch_size}, less than {world_size} proc") as raised:
        start_platform(chosen)
    assert f"train.accumulation = {accumulation} passes" in str(raised.value)
    assert f"raise --batch_size to {needed}," in str(raised.value)
    assert raised.value.exit_code == 2


def test_as_many_queries_as_passes_are_enough(config):
    assert start_platform(config("--train.accumulation=4")).accelerator.num_processes == 1


def test_a_launch_that_says_something_else_is_refused_before_anything_starts(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps is 8, but train\.accumulation is 1"):
        start_platform(config())


def test_deepspeed_that_is_not_there_says_what_to_install(config, zero_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "arcdist.engine.deepspeed", None)
    with pytest.raises(PlatformError, match="asks for DeepSpeed, which cannot be imported") as raised:
        start_platform(config())
    message = str(raised.value)
    assert str(zero_file) in message
    assert "pip install 'arcdist[deepspeed]'" in message
    assert "accelerate_configs/multi_gpu.yaml" in message
    assert raised.value.exit_code == 3


def test_a_deepspeed_file_that_is_not_there_is_named(config, zero_file):
    zero_file.unlink()
    with pytest.raises(ConfigError, match="zero") as raised:
        start_platform(config())
    assert str(zero_file) in str(raised.value)


def test_without_a_zero_config_deepspeed_is_not_imported(config):
    def imported():
        return {name for name in sys.modules if name.startswith("deepspeed") or name == "arcdist.engine.deepspeed"}

    before = imported()
    start_platform(config())
    assert imported() == before
