from dataclasses import replace

import pytest

from arcdist.config import Config, TrainConfig
from arcdist.doctor import launch
from arcdist.doctor.finding import Verdict
from arcdist.doctor.launch import check_deepspeed, check_launch, check_platform
from arcdist.engine.platform import start_platform
from arcdist.errors import ConfigError


@pytest.fixture(autouse=True)
def launcher(monkeypatch):
    """Set what a launcher sets."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)

    def setting(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return setting


ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2.json"}
DDP = ", each with the whole of Qwen (DDP)"


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, "one process"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, f"2 processes on 1 machine{DDP}"),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, f"16 processes on 2 machines{DDP}"),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", **ZERO},
            "4 processes on 1 machine, DeepSpeed ZeRO-2 (ds_configs/zero2.json)",
        ),
    ],
)
def test_the_launch_as_it_is_understood(launcher, variables, found):
    launcher(**variables)
    assert check_launch(Config()).found == found


def test_a_contradiction_is_refused(launcher):
    launcher(ACCELERATE_MIXED_PRECISION="fp16")
    with pytest.raises(ConfigError, match=r"mixed_precision is fp16, but train\.precision is bf16"):
        check_launch(Config(train=TrainConfig(precision="bf16")))
    launcher(ACCELERATE_MIXED_PRECISION="no", **{**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"})
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        check_launch(Config())


@pytest.mark.parametrize(
    ("version", "variables", "found", "verdict"),
    [
        ("0.19.8", {}, "0.19.8; this launch does not need it", Verdict.OK),
        (None, {}, "not installed; this launch does not need it", Verdict.OK),
        ("0.19.8", ZERO, "0.19.8", Verdict.OK),
        (None, ZERO, "not installed, and the launch asks for it", Verdict.FAIL),
        (None, {"ACCELERATE_USE_DEEPSPEED": "true"}, "not installed, and the launch asks for it", Verdict.FAIL),
    ],
)
def test_deepspeed_is_needed_where_it_is_asked_for(launcher, monkeypatch, version, variables, found, verdict):
    monkeypatch.setattr(launch, "installed_version", lambda _name: version)
    launcher(**variables)
    finding = check_deepspeed()
    assert (finding.found, finding.verdict) == (found, verdict)
    assert ("pip install 'arcdist[deepspeed]'" in finding.advice) == (verdict is Verdict.FAIL)


@pytest.mark.usefixtures("clean_process")
def test_what_was_started_is_told_and_deepspeeds_numbers_are_compared():
    config = Config(train=TrainConfig(device="cpu", cpu_threads=1, batch_size=4))
    platform = start_platform(config)
    assert check_platform(platform, config).found == "Accelerate on cpu, precision no"
    content = {"zero_optimization": {"stage": 2}, "train_batch_size": 4}
    zero = replace(platform, zero_file="mine.json", zero=content)
    assert check_platform(zero, config).verdict is Verdict.OK
    contradicting = replace(zero, zero={**content, "train_batch_size": 5})
    with pytest.raises(ConfigError, match=r"mine\.json sets train_batch_size to 5"):
        check_platform(contradicting, config)
