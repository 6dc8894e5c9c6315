"""What a launcher says of a process."""

import os
import subprocess
import sys

import pytest

from arcdist.distributed import environment
from arcdist.errors import ConfigError

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


OF_OTHERS = ("LOCAL_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCH = "start several processes with `accelerate launch` or `torchrun`, which set it, or unset"


def checked(monkeypatch, **variables):
    """What is left of the variables after the check."""
    for name in (*LAUNCHED, *OF_OTHERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment.check_environment()
    return {name: os.environ[name] for name in variables if name in os.environ}


def test_what_a_launcher_sets_is_left_as_it_is(monkeypatch):
    assert checked(monkeypatch, **LAUNCHED) == LAUNCHED
    alone = {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert checked(monkeypatch, **alone) == alone
    assert checked(monkeypatch) == {}


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_an_empty_variable_counts_as_not_set(monkeypatch, name):
    assert checked(monkeypatch, **{name: ""}) == {}
    monkeypatch.setenv(name, "")  # also for programs that do not check
    assert (environment.rank(), environment.world_size()) == (0, 1)
    assert (environment.local_rank(), environment.local_world_size()) == (0, 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x"}, f"RANK is 'x', and has to be a whole number from 0: {LAUNCH} RANK for one process."),
        ({"RANK": "-1"}, "RANK is '-1', and has to be a whole number from 0: "),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', and has to be a whole number from 1: "),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', and has to be a whole number from 1: "),
        ({"LOCAL_RANK": "1.0"}, "LOCAL_RANK is '1.0', and has to be a whole number from 0: "),
        ({"LOCAL_WORLD_SIZE": "²"}, "LOCAL_WORLD_SIZE is '²', and has to be a whole number from 1: "),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http', and has to be a whole number from 1 to 65535: "),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000', and has to be a whole number from 1 to 65535: "),
        ({"RANK": "1"}, f"RANK is 1, but WORLD_SIZE is not set: {LAUNCH} RANK for one process."),
        ({**LAUNCHED, "RANK": "8"}, "RANK is 8, but WORLD_SIZE is 8, and ranks begin with 0: "),
        ({**LAUNCHED, "LOCAL_RANK": "4"}, "LOCAL_RANK is 4, but LOCAL_WORLD_SIZE is 4, and ranks begin with 0: "),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1, but WORLD_SIZE is not set: "),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set: start several processes with "
            "`accelerate launch` or `torchrun`, which set all of them, or unset WORLD_SIZE for one process.",
        ),
        ({**LAUNCHED, "MASTER_ADDR": ""}, "WORLD_SIZE is 8, but MASTER_ADDR is not set: "),
        (
            {"SLURM_STEP_NUM_TASKS": "4"},
            "SLURM_STEP_NUM_TASKS is 4, but WORLD_SIZE is not set, so that these processes do not know of each other: "
            "let srun or mpirun start `accelerate launch` once a machine, as launch/slurm_multi_node.sh does, or set "
            "WORLD_SIZE=1 for 4 runs of one process each.",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2, but WORLD_SIZE is not set, "),
        ({"PMI_SIZE": "2", "WORLD_SIZE": ""}, "PMI_SIZE is 2, but WORLD_SIZE is not set, "),
    ],
)
def test_what_no_launcher_sets_is_named(monkeypatch, variables, message):
    with pytest.raises(ConfigError) as caught:
        checked(monkeypatch, **variables)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_one_process_is_not_left_what_libraries_would_look_for_others_by(monkeypatch, missing):
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}
    del alone[missing]
    assert checked(monkeypatch, **alone).keys() == alone.keys() - {"LOCAL_RANK"}


def test_runs_of_one_process_each_are_started_by_any_program(monkeypatch):
    assert checked(monkeypatch, SLURM_STEP_NUM_TASKS="1", OMPI_COMM_WORLD_SIZE="1")
    assert checked(monkeypatch, WORLD_SIZE="1", PMI_SIZE="4", OMPI_COMM_WORLD_SIZE="4") == {"WORLD_SIZE": "1"}
    # A job of several tasks whose script starts the program itself.
    assert checked(monkeypatch, SLURM_NTASKS="4", SLURM_PROCID="0")


def test_deepspeed_s_launcher_has_another_name_for_the_processes_of_a_machine(monkeypatch):
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    given |= {"MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}
    assert checked(monkeypatch, **given) == given
    assert environment.local_world_size() == 2
    with pytest.raises(ConfigError, match="LOCAL_RANK is 2, but LOCAL_SIZE is 2"):
        checked(monkeypatch, **{**given, "LOCAL_RANK": "2"})


def test_the_package_needs_no_torch():
    program = "import sys, arcdist.distributed; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
