"""What a launcher says of a process."""

import subprocess
import sys

import pytest

from arcdist.distributed import environment

LAUNCHED = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


@pytest.fixture
def alone(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_without_a_launcher_there_is_one_process():
    assert (environment.rank(), environment.world_size()) == (0, 1)
    assert (environment.local_rank(), environment.local_world_size()) == (0, 1)
    assert environment.is_main()
    assert environment.store_address() is None
    assert not environment.launcher_keeps_store()


def test_the_launchers_word_is_read_at_each_call(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert (environment.rank(), environment.world_size()) == (5, 8)
    assert (environment.local_rank(), environment.local_world_size()) == (1, 4)
    assert not environment.is_main()
    assert environment.store_address() == ("node-0", 29500)
    assert environment.launcher_keeps_store()
    assert environment.store_key("failed") == "arcdist/none/2/failed"

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert environment.is_main()
    assert not environment.launcher_keeps_store()
    assert environment.store_key("failed") == "arcdist/none/3/failed"


def test_the_package_needs_no_torch():
    program = "import sys, arcdist.distributed; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
