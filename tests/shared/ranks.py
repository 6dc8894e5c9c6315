"""Processes that make one run after another: they start, and import everything, once."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from torch.distributed import TCPStore

CHECKOUT = Path(__file__).resolve().parents[2]
RANK = Path(__file__).with_name("rank.py")
SECONDS = 300
"""Nothing takes as long, even beside others."""


def folder_of_session(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder of this test session, the same for all processes that it is spread over."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


def launcher(file: str, *flags: str) -> list[str]:
    """Begin a command with `accelerate launch` and a file of `accelerate_configs/`, by name, or any other, by path."""
    path = file if file.endswith(".yaml") else str(CHECKOUT / "accelerate_configs" / f"{file}.yaml")
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path, *flags]


def environment_of_runs(cache: Path, **more: str) -> dict[str, str]:
    """This process's environment without what would change a run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "DS_"))}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_DATASETS_CACHE": str(cache), **more}


@dataclass(frozen=True)
class RunningRanks:
    """The processes of a run that is under way."""

    pids: list[int]
    connections: list[Connection]
    store: TCPStore | None
    """The launcher's part: it outlives them."""

    def ended(self) -> bool:
        """Whether all of them have."""
        return all(connection.poll() for connection in self.connections)

    def wait(self, seconds: float = SECONDS) -> list[int]:
        """Their exit codes, once all have ended; of a process that a signal ended, its number below 0."""
        give_up = time.monotonic() + seconds
        if not all(connection.poll(max(0.0, give_up - time.monotonic())) for connection in self.connections):
            self.kill()
            codes = [connection.recv() for connection in self.connections]
            raise TimeoutError(f"Not all of {self.pids} ended within {seconds:.0f} s; killed, they ended with {codes}.")
        return [connection.recv() for connection in self.connections]

    def kill(self) -> None:
        """Kill them all at once; `wait` then has how they ended."""
        for pid, connection in zip(self.pids, self.connections, strict=True):
            if not connection.poll():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Ranks:
    """The ranks of one launcher, or a single process without one, that wait for runs."""

    def __init__(self, start: Sequence[str], processes: int, folder: Path, environment: Mapping[str, str]) -> None:
        self._store_needed = processes > 1
        self._output = folder / "ranks"
        with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listener:
            address = f"{place}/socket"
            listener.bind(address)
            listener.listen()
            listener.settimeout(1.0)
            with self._output.open("a") as output:
                self._launcher = subprocess.Popen(
                    [*start, str(RANK)],
                    cwd=CHECKOUT,
                    env={**environment, "CALLER": address},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            by_rank: dict[int, Connection] = {}
            give_up = time.monotonic() + SECONDS
            while len(by_rank) < processes:
                assert self._launcher.poll() is None, self._output.read_text()
                assert time.monotonic() < give_up, self._output.read_text()
                try:
                    connection = Connection(listener.accept()[0].detach())
                except TimeoutError:
                    continue
                by_rank[connection.recv()] = connection
        self._connections = [by_rank[rank] for rank in range(processes)]

    def start(
        self, command: Sequence[str], folder: Path, out: Path, err: Path, environment: Mapping[str, str]
    ) -> RunningRanks:
        """Start a Python program, given with its arguments, on all ranks."""
        store = None
        if self._store_needed:
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            environment = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        run = {
            "command": list(command),
            "folder": str(folder),
            "out": str(out),
            "err": str(err),
            "environment": dict(environment),
        }
        for connection in self._connections:
            connection.send(run)
        return RunningRanks([connection.recv() for connection in self._connections], self._connections, store)

    def close(self) -> None:
        """Let them end."""
        for connection in self._connections:
            connection.close()
        self._launcher.terminate()
        self._launcher.wait()


class RankPool:
    """Ranks of several launchers, of which those that were needed last are kept."""

    def __init__(self, folder: Path, kept: int = 2) -> None:
        self._folder = folder
        self._environment = environment_of_runs(folder / "huggingface")
        self._kept = kept
        self._ranks: OrderedDict[tuple[str, int], Ranks] = OrderedDict()

    def ranks(self, config: str, processes: int) -> Ranks:
        """Those that a file of `accelerate_configs/` starts, or one process without a launcher if it is `python`."""
        key = config, processes
        if key not in self._ranks:
            while len(self._ranks) >= self._kept:
                self._ranks.popitem(last=False)[1].close()
            alone = [sys.executable]
            start = alone if config == "python" else launcher(config, "--num_processes", str(processes))
            self._ranks[key] = Ranks(start, processes, self._folder, self._environment)
        self._ranks.move_to_end(key)
        return self._ranks[key]

    def close(self) -> None:
        """Let all end."""
        while self._ranks:
            self._ranks.popitem()[1].close()
