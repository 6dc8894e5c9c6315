"""Ranks that are real processes: started by hand beside a store, as a launcher does, or by the real launcher."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from torch.distributed import TCPStore

LAUNCHER = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "debug": False,
    "machine_rank": 0,
    "main_process_port": 0,
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
    "use_cpu": True,
}
"""An `accelerate launch` of gloo processes on the CPU."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str
    at: float


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test has started; none of them outlives it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_all(processes: Sequence[subprocess.Popen[str]], seconds: float = 180) -> list[Ended]:
    """What each wrote, how and when it ended. They write little enough to fit into pipes."""
    times: dict[int, float] = {}
    give_up = time.monotonic() + seconds
    while len(times) < len(processes):
        times |= {i: time.time() for i, p in enumerate(processes) if i not in times and p.poll() is not None}
        assert time.monotonic() < give_up, "a process did not end"
        time.sleep(0.05)
    outputs = [process.communicate() for process in processes]
    return [
        Ended(process.returncode, out, err, times[i])
        for i, (process, (out, err)) in enumerate(zip(processes, outputs, strict=True))
    ]


@pytest.fixture
def start_ranks(tmp_path, started) -> Callable[..., list[subprocess.Popen[str]]]:
    """Start a program once for each rank, with the environment of a launcher that stops no rank when another ends.

    `store` is the launcher's store; without one the ranks get a free port, and rank 0 is to open it.
    """

    def start(program: str, ranks: int, store: TCPStore | None = None) -> list[subprocess.Popen[str]]:
        script = tmp_path / "worker.py"
        script.write_text(program)
        common = {
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port() if store is None else store.port),
            "TORCHELASTIC_USE_AGENT_STORE": str(store is not None),
        }
        for rank in range(ranks):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-W", "error", str(script)],
                    cwd=tmp_path,
                    env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started[-ranks:]

    return start


@pytest.fixture
def finish() -> Callable[[Sequence[subprocess.Popen[str]]], list[Ended]]:
    """Wait until processes have ended."""
    return wait_for_all


@pytest.fixture
def run_ranks(start_ranks) -> Callable[[str, int], list[Ended]]:
    """Run a program to its end on so many ranks, beside a store that outlives them."""

    def run(program: str, ranks: int) -> list[Ended]:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return wait_for_all(start_ranks(program, ranks, store))

    return run


@pytest.fixture
def launch(tmp_path, started) -> Callable[..., list[Ended]]:
    """Run a script through `accelerate launch`, on one machine or on several that are all this one."""

    def run(script: Path, *argv: str, processes: int, machines: int = 1) -> list[Ended]:
        config = tmp_path / "launcher.yaml"
        config.write_text(yaml.safe_dump(LAUNCHER))
        port = free_port()
        for machine in range(machines):
            several = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)) if machines > 1 else ()
            command = [
                *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)),
                *("--num_processes", str(processes), "--num_machines", str(machines)),
                *("--machine_rank", str(machine), *several, str(script), *argv),
            ]
            started.append(
                subprocess.Popen(
                    command,
                    cwd=tmp_path,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return wait_for_all(started[-machines:])

    return run
