"""Whole runs under the real `accelerate launch`, and how two of them compare.

A run is made once, whichever tests and test processes ask for it.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from shared.measured import MEASURED
from shared.ranks import SECONDS, Ranks, environment_of_runs, folder_of_session, launcher
from shared.small_run import SMALL_RUN
from torch import Tensor

CHECKOUT = Path(__file__).resolve().parents[3]
TRAIN = CHECKOUT / "launch" / "train.py"
PROGRAMS = Path(__file__).parent / "programs"

TINY_RUN = f"""\
{SMALL_RUN}\
train: {{epochs: 4, batch_size: 7, device: cpu, cpu_threads: 1}}
distributed: {{replica_check_every: 1}}
output: {{log_every: 1, save_every: 100, validate_every: 4}}
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has ended."""

    codes: list[int]
    """Exit codes of its ranks; if it had its own launcher, that one's, or one of each machine."""
    out: str
    err: str
    """What all of them wrote, with their processes."""
    ended: float
    """When all had ended."""
    where: str

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.where) / "run"

    @property
    def notes(self) -> Path:
        """What a program beside these tests has noted."""
        return Path(self.where) / "notes"

    @property
    def messages(self) -> list[str]:
        """The program's messages to its user."""
        return [line.removeprefix("train.py: ") for line in self.err.splitlines() if line.startswith("train.py: ")]

    @property
    def root_cause(self) -> tuple[int, int]:
        """Rank and exit code of the process that torchrun calls the cause of a failure."""
        table = self.err.partition("Root Cause")[2]
        found = [re.search(rf"{name} *: (\d+) ", table) for name in ("rank", "exitcode")]
        rank, code = (int(match[1]) for match in found if match)
        return rank, code

    def steps(self) -> list[dict[str, Any]]:
        """The records of `steps.jsonl`."""
        return [json.loads(line) for line in (self.folder / "steps.jsonl").read_text().splitlines()]

    def epochs(self) -> list[dict[str, Any]]:
        """The records of `metrics.json`."""
        epochs: list[dict[str, Any]] = json.loads((self.folder / "metrics.json").read_text())["epochs"]
        return epochs

    def checkpoint(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and moments of a checkpoint under one roof, and its state."""
        folder = self.folder / "checkpoints" / f"step_{step:08d}"
        tensors = {
            f"{file.stem}.{name}": value
            for file in folder.glob("*.safetensors")
            for name, value in load_file(file).items()
        }
        return tensors, json.loads((folder / "state.json").read_text())

    def noted(self) -> list[list[dict[str, Any]]]:
        """What each process has noted, by rank."""
        files = sorted(self.notes.glob("rank_*.jsonl"))
        return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]

    def processes_left(self) -> list[int]:
        """Those of its processes that are still there."""
        beats = [json.loads(file.read_text()) for file in (self.folder / "heartbeats").glob("rank_*.json")]
        assert beats
        return [beat["pid"] for beat in beats if is_there(beat["pid"])]


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests of each launcher file together: they share the processes that it starts."""
    here = [index for index, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    for index, item in zip(here, sorted((items[index] for index in here), key=launch_of), strict=True):
        items[index] = item


def launch_of(test: pytest.Item) -> tuple[str, int]:
    """The launcher file and the number of processes that most of a test's runs have."""
    values = test.callspec.params if hasattr(test, "callspec") else {}
    config, processes = values.get("several", (values.get("config", "cpu_2proc"), values.get("processes", 2)))
    return config, processes


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same for all processes that it is spread over."""
    return folder_of_session(tmp_path_factory, "launched")


@pytest.fixture(scope="session")
def launched(shared_folder: Path, ranks: Callable[[str, int], Ranks]) -> Callable[..., Run]:
    """Give the run that a launcher file, a number of processes and flags make, from this session if it has been made.

    `config` is the name of a file in `accelerate_configs/` or a path; `program` one of `programs/` here, in place of
    `launch/train.py`; `environment` is set besides. With `killed_after`, a run and a step, it continues in a copy of
    that run's folder, as one leaves it that is killed before its next checkpoint.

    Runs of one launcher file and number of processes share one `accelerate launch`. With `own_launcher` a run has its
    own, so that it shows what that does when a process fails; with `machines` it has several, all on this machine.
    """

    def launch(
        config: str,
        processes: int,
        *flags: str,
        program: str | None = None,
        own_launcher: bool = False,
        machines: int = 1,
        environment: tuple[tuple[str, str], ...] = (),
        killed_after: tuple[Run, int] | None = None,
    ) -> Run:
        if "zero" in config and importlib.util.find_spec("deepspeed") is None:
            pytest.skip("DeepSpeed is not installed.")
        asked = repr((config, processes, flags, program, own_launcher, machines, environment, killed_after))
        name = f"{Path(config).stem}_{processes}_{blake2b(asked.encode(), digest_size=4).hexdigest()}"
        folder = shared_folder / name
        with FileLock(shared_folder / f"{name}.lock"):
            if not (folder / "ended.json").exists():
                (folder / "notes").mkdir(parents=True, exist_ok=True)
                (folder / "tiny.yaml").write_text(TINY_RUN)
                if killed_after:
                    copy_as_of(*killed_after, folder / "run")
                command = [
                    str(PROGRAMS / f"{program}.py" if program else TRAIN),
                    *("--config", str(folder / "tiny.yaml"), "--output_dir", str(folder / "run"), *flags),
                    *(("--resume",) if killed_after else ()),
                ]
                more = {"NOTES": str(folder / "notes"), **dict(environment)}
                if own_launcher or machines > 1:
                    port = free_port()
                    launchers = [
                        launcher(config, *flags_of_machine(machine, machines, port), "--num_processes", str(processes))
                        for machine in range(machines)
                    ]
                    run_to_the_end([[*start, *command] for start in launchers], folder, more)
                else:
                    out, err = folder / "out", folder / "err"
                    codes = ranks(config, processes).start(command, folder, out, err, more).wait()
                    note_end(folder, codes, out.read_text(), err.read_text())
            return Run(**json.loads((folder / "ended.json").read_text()))

    return launch


def flags_of_machine(machine: int, machines: int, port: int) -> tuple[str, ...]:
    if machines == 1:
        return ()
    return (
        *("--num_machines", str(machines), "--machine_rank", str(machine)),
        *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
    )


@pytest.fixture(scope="session")
def run_commands(shared_folder: Path) -> Callable[..., Run]:
    """Run any command to its end, in the surroundings of the others."""

    def run(name: str, command: list[str], environment: dict[str, str]) -> Run:
        folder = shared_folder / name
        (folder / "notes").mkdir(parents=True)
        run_to_the_end([command], folder, environment)
        return Run(**json.loads((folder / "ended.json").read_text()))

    return run


def copy_as_of(run: Run, step: int, folder: Path) -> None:
    """Copy a run's folder without the checkpoints after a step; its other files know of what came later."""
    assert set(run.codes) == {0}, run.err
    shutil.copytree(run.folder, folder)
    for checkpoint in (folder / "checkpoints").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    assert (folder / "checkpoints" / f"step_{step:08d}").is_dir()


def run_to_the_end(commands: list[list[str]], folder: Path, environment: dict[str, str]) -> None:
    """Start a command a machine, and leave in `ended.json` how they ended."""
    surroundings = environment_of_runs(folder.parent / "huggingface", **environment)
    texts = [[folder / f"{stream}_{machine}" for stream in ("out", "err")] for machine in range(len(commands))]
    launchers = []
    for command, (out, err) in zip(commands, texts, strict=True):
        with out.open("w") as stdout, err.open("w") as stderr:
            launchers.append(subprocess.Popen(command, cwd=folder, env=surroundings, stdout=stdout, stderr=stderr))
    try:
        codes = [launcher.wait(SECONDS) for launcher in launchers]
    finally:
        for launcher in launchers:
            # Asked in this way, a launcher stops its processes, which are in sessions of their own.
            launcher.terminate()
            launcher.wait()
    out, err = ("".join(files[index].read_text() for files in texts) for index in range(2))
    note_end(folder, codes, out, err)


def note_end(folder: Path, codes: list[int], out: str, err: str) -> None:
    run = Run(codes=codes, out=out, err=err, ended=time.time(), where=str(folder))
    (folder / "ended.json").write_text(json.dumps(asdict(run)))


def assert_close(record: dict[str, Any], expected: dict[str, Any], tolerance: float, *, but: set[str]) -> None:
    assert record.keys() == expected.keys()
    wrong = {
        name: (record[name], value)
        for name, value in expected.items()
        if name not in but and record[name] != pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True)
    }
    assert wrong == {}


@pytest.fixture(scope="session")
def assert_same_trajectory() -> Callable[..., None]:
    """Two runs have reported the same numbers and ended with the same weights, moments and memory.

    `tolerance` is of the numbers, relative or absolute, and of moments; `of_weights` absolute.
    """

    def compare(run: Run, expected: Run, *, tolerance: float = 1e-5, of_weights: float = 1e-4) -> None:
        assert set(run.codes) == {0}, run.err
        assert set(expected.codes) == {0}, expected.err
        # How level the work is depends on who shares it.
        for records, others in ((run.steps(), expected.steps()), (run.epochs(), expected.epochs())):
            for record, other in zip(records, others, strict=True):
                assert_close(record, other, tolerance, but={*MEASURED, "imbalance"})

        last = expected.steps()[-1]["step"]
        (tensors, state), (others, other_state) = run.checkpoint(last), expected.checkpoint(last)
        for name in ("step", "epoch", "memory_gate"):
            assert state[name] == pytest.approx(other_state[name], rel=tolerance)
        assert tensors.keys() == others.keys()
        for name, other in others.items():
            allowed = of_weights if name.startswith("weights.") else tolerance
            torch.testing.assert_close(
                tensors[name], other, rtol=0, atol=allowed, msg=lambda text, name=name: f"{name}: {text}"
            )

    return compare
