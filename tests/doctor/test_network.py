"""Texts and sums between processes, and the launch as it is understood."""

import json
import re
import socket
from dataclasses import replace

import pytest
import torch
from torch import distributed

from arcdist.config import Config, TrainConfig
from arcdist.doctor import network
from arcdist.doctor.examination import Verdict
from arcdist.doctor.network import TextExchange, check_all_reduce, check_deepspeed, check_launch, check_platform
from arcdist.engine.platform import start_platform
from arcdist.errors import ConfigError, DistributedError

PROGRAM = """\
import json, sys, time
import torch
from arcdist.distributed import rank
from arcdist.doctor.network import TextExchange

texts = TextExchange(PATIENCE)
time.sleep(0.3 * rank())
first = texts.gather("first", f"rank {rank()}: \\u00e4\\n" * (rank() + 1))
if rank() in SILENT:
    sys.exit()
print(json.dumps([first, texts.gather("second", "" if rank() == 0 else "x")]))
"""


def program(patience=30.0, silent=()):
    return PROGRAM.replace("PATIENCE", str(patience)).replace("SILENT", str(silent))


@pytest.fixture
def several(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_hears_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert TextExchange(1.0).gather("topic", "text") == ["text"]


@pytest.mark.slow
@pytest.mark.parametrize("has_store", [True, False], ids=["launcher's store", "rank 0 opens it"])
def test_every_process_hears_all(run_ranks, start_ranks, finish, has_store):
    ended = run_ranks(program(), 3) if has_store else finish(start_ranks(program(), 3))
    assert [(process.code, process.err) for process in ended] == [(0, "")] * 3
    first = [f"rank {rank}: ä\n" * (rank + 1) for rank in range(3)]
    assert [json.loads(process.out) for process in ended] == [[first, ["", "x", "x"]]] * 3


@pytest.mark.slow
def test_one_that_is_silent_is_not_waited_for_longer(run_ranks):
    heard, gone, other = run_ranks(program(patience=2.0, silent=(1,)), 3)
    assert (gone.code, gone.out) == (0, "")
    assert json.loads(heard.out)[1] == json.loads(other.out)[1] == ["", None, "x"]


@pytest.mark.usefixtures("several")
def test_without_a_place_to_meet_nothing_begins():
    with pytest.raises(ConfigError, match="accelerate launch"):
        TextExchange(1.0)


@pytest.mark.usefixtures("several")
def test_a_store_that_does_not_answer_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(DistributedError, match=rf"Rank 1 does not reach .* 127\.0\.0\.1:{port} \(.*refused"):
        TextExchange(0.2)


CPU = torch.device("cpu")


@pytest.fixture
def group(monkeypatch):
    """A process group that takes itself for several."""
    monkeypatch.setattr(network, "is_distributed", lambda: True)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_one_process_has_nothing_to_exchange():
    finding = check_all_reduce(CPU, 60.0)
    assert (finding.found, finding.verdict) == ("one process, which has nobody to exchange with", Verdict.OK)


@pytest.mark.usefixtures("group")
def test_the_pace_is_reported(monkeypatch):
    monkeypatch.setattr(network, "_SLOW_SECONDS", 1e9)
    finding = check_all_reduce(CPU, 60.0)
    assert re.fullmatch(r"right sums; 1 KB in [\d.]+ ms, 64 MB in \d+ ms \([\d.]+ GB/s\)", finding.found)
    assert finding.verdict is Verdict.OK


@pytest.mark.usefixtures("group")
def test_a_slow_exchange_is_worth_a_warning(monkeypatch):
    monkeypatch.setattr(network, "_SLOW_SECONDS", 0.0)
    finding = check_all_reduce(CPU, 60.0)
    assert finding.verdict is Verdict.WARN
    assert finding.found.endswith(", which is slow")
    assert "GLOO_SOCKET_IFNAME" in finding.advice
    assert "NCCL" not in finding.advice


@pytest.mark.usefixtures("group")
def test_an_exchange_that_fails_is_reported(monkeypatch):
    def broken(*_arguments, **_named):
        raise RuntimeError("Connection closed by peer\n(frame #0 ...)")

    monkeypatch.setattr(distributed, "all_reduce", broken)
    finding = check_all_reduce(CPU, 60.0)
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert finding.found == "failed with gloo: RuntimeError: Connection closed by peer"


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
    monkeypatch.setattr(network, "installed_version", lambda _name: version)
    launcher(**variables)
    finding = check_deepspeed()
    assert (finding.found, finding.verdict) == (found, verdict)
    assert ("pip install 'arcdist[deepspeed]'" in finding.advice) == (verdict is Verdict.FAIL)


@pytest.mark.usefixtures("clean_process")
def test_what_was_started_is_reported_and_deepspeeds_numbers_are_compared():
    config = Config(train=TrainConfig(device="cpu", cpu_threads=1, batch_size=4))
    platform = start_platform(config)
    assert check_platform(platform, config).found == "Accelerate on cpu, precision no"
    content = {"zero_optimization": {"stage": 2}, "train_batch_size": 4}
    zero = replace(platform, zero_file="mine.json", zero=content)
    assert check_platform(zero, config).verdict is Verdict.OK
    contradicting = replace(zero, zero={**content, "train_batch_size": 5})
    with pytest.raises(ConfigError, match=r"mine\.json sets train_batch_size to 5"):
        check_platform(contradicting, config)
