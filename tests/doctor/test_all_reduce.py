"""The exchange of one process with itself; that of several goes through the launcher, in tests/cli/test_doctor.py."""

import re

import pytest
import torch
from torch import distributed

from arcdist.doctor import all_reduce
from arcdist.doctor.all_reduce import check_all_reduce
from arcdist.doctor.finding import Verdict

CPU = torch.device("cpu")


@pytest.fixture
def group(monkeypatch):
    """A process group that takes itself for several."""
    monkeypatch.setattr(all_reduce, "several_processes", lambda: True)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_one_process_has_nothing_to_exchange():
    finding = check_all_reduce(CPU, 60.0)
    assert (finding.found, finding.verdict) == ("one process, which has nobody to exchange with", Verdict.OK)


@pytest.mark.usefixtures("group")
def test_the_pace_is_told(monkeypatch):
    monkeypatch.setattr(all_reduce, "_SLOW_SECONDS", 1e9)
    finding = check_all_reduce(CPU, 60.0)
    assert re.fullmatch(r"right sums; 1 KB in [\d.]+ ms, 64 MB in \d+ ms \([\d.]+ GB/s\)", finding.found)
    assert finding.verdict is Verdict.OK


@pytest.mark.usefixtures("group")
def test_a_slow_exchange_is_worth_a_warning(monkeypatch):
    monkeypatch.setattr(all_reduce, "_SLOW_SECONDS", 0.0)
    finding = check_all_reduce(CPU, 60.0)
    assert finding.verdict is Verdict.WARN
    assert finding.found.endswith(", which is slow")
    assert "GLOO_SOCKET_IFNAME" in finding.advice
    assert "NCCL" not in finding.advice


@pytest.mark.usefixtures("group")
def test_an_exchange_that_fails_is_told(monkeypatch):
    def broken(*_arguments, **_named):
        raise RuntimeError("Connection closed by peer\n(frame #0 ...)")

    monkeypatch.setattr(distributed, "all_reduce", broken)
    finding = check_all_reduce(CPU, 60.0)
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert finding.found == "failed with gloo: RuntimeError: Connection closed by peer"
