"""Texts between processes that have no process group: real ones, beside a launcher's store and without one."""

import json
import socket

import pytest

from arcdist.distributed.texts import TextExchange
from arcdist.errors import ConfigError, DistributedError

PROGRAM = """\
import json, sys, time
import torch
from arcdist.distributed import rank
from arcdist.distributed.texts import TextExchange

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
