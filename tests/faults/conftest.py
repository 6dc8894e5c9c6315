"""Whole runs through the real launcher, to which something happens on the way.

Every run of these tests has the same configuration and seed: one that was killed and resumed must end as the
uninterrupted one did, which is made once a number of processes, whichever test processes ask for it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from shared.measured import without_measured
from shared.small_run import SMALL_RUN, STEPS_PER_EPOCH

CHECKOUT = Path(__file__).resolve().parents[2]
TRAIN = CHECKOUT / "launch" / "train.py"
PROGRAMS = Path(__file__).parent / "programs"
OTHER_PROGRAMS = CHECKOUT / "tests" / "distributed" / "launched" / "programs"
CONFIGS = {1: "cpu", 2: "cpu_2proc"}

FAULT_RUN = f"""\
{SMALL_RUN}\
train: {{epochs: 3, batch_size: 7, device: cpu, cpu_threads: 1}}
output: {{log_every: 1, save_every: 3, validate_every: 3}}
"""
STEPS = 3 * STEPS_PER_EPOCH

SECRETS = {
    "WANDB_API_KEY": "5ec3e7aa11bb22cc33dd44ee55ff66aa77bb88cc",
    "HF_TOKEN": "hf_5ec3e7TokenThatNoFileMayHold",
    "AWS_SECRET_ACCESS_KEY": "5ec3e7/AwsKeyThatNoFileMayHold",
}
"""In the environment of every run."""

SECONDS = 120
"""No run takes as long, even beside others."""


class Attempt:
    """A start of a run: the launcher, its processes, and what they write to their terminal."""

    def __init__(self, command: list[str], run: Path, output: Path, environment: dict[str, str]) -> None:
        self.run = run
        self._output = output
        with output.open("w") as file:
            self.launcher = psutil.Popen(command, env=environment, stdout=file, stderr=file, cwd=run.parent)

    @property
    def output(self) -> str:
        """What all its processes have written so far."""
        return self._output.read_text()

    @property
    def resumed_from(self) -> int:
        """The step that it went on from; 0 where it began anew."""
        found = re.search(r"Resumed from \S+: step (\d+),", self.output)
        return int(found[1]) if found else 0

    def wait(self) -> int:
        """The launcher's exit code, in the end."""
        return self.launcher.wait(SECONDS)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Return as soon as something has happened, which has to be before the launcher's end."""
        give_up = time.monotonic() + SECONDS
        while not happened():
            assert self.launcher.poll() is None, self.output
            assert time.monotonic() < give_up, self.output
            time.sleep(0.005)

    def wait_for_step(self, step: int) -> None:
        """Return as soon as so many steps have been logged."""
        self.wait_until(lambda: self.last_step() >= step)

    def last_step(self) -> int:
        """The last one that was logged; 0 where none was."""
        return last_step(self.run)

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        beat = json.loads((self.run / "heartbeats" / f"rank_{number:05d}.json").read_text())
        return psutil.Process(beat["pid"])

    def processes(self) -> list[psutil.Process]:
        """All that there are."""
        try:
            return [self.launcher, *self.launcher.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def left_of(self, processes: list[psutil.Process], seconds: float = 10.0) -> list[psutil.Process]:
        """Those that are still there after so many seconds."""
        left: list[psutil.Process] = psutil.wait_procs(processes, timeout=seconds)[1]
        return left

    def kill(self) -> None:
        """Kill all processes at once; none of them remains."""
        processes = self.processes()
        for process in processes:
            if process.is_running():
                process.kill()
        assert self.left_of(processes) == []


def last_step(run: Path) -> int:
    """The last step of a run that was logged; 0 where none was."""
    file = run / "steps.jsonl"
    whole = file.read_bytes().rpartition(b"\n")[0].splitlines() if file.exists() else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


@dataclass(frozen=True, kw_only=True)
class Starter:
    """Starts runs in one folder."""

    place: Path
    shared: Path
    attempts: list[Attempt]

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.place / "run"

    @property
    def notes(self) -> Path:
        """What a program notes."""
        return self.place / "notes"

    def __call__(
        self,
        *flags: str,
        processes: int = 1,
        launcher: bool = True,
        program: Path = TRAIN,
        fault: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Attempt:
        """Start `program` under `accelerate launch` or, with one process, without it, and with a fault put in."""
        self.notes.mkdir(exist_ok=True)
        config = self.place / "fault_run.yaml"
        config.write_text(FAULT_RUN)
        surroundings = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "DS_"))},
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "PYTHONUNBUFFERED": "1",
            "HF_DATASETS_CACHE": str(self.shared / "huggingface"),
            "NOTES": str(self.notes),
            **SECRETS,
            **(environment or {}),
        }
        if fault is not None:
            program = PROGRAMS / "faulty.py"
            surroundings |= {"FAULT": json.dumps(fault), "FAULT_FOLDER": str(self.run)}
        file = CHECKOUT / "accelerate_configs" / f"{CONFIGS[processes]}.yaml"
        command = [
            sys.executable,
            *(("-m", "accelerate.commands.launch", "--config_file", str(file)) if launcher else ()),
            *(str(program), "--config", str(config), "--output_dir", str(self.run), *flags),
        ]
        output = self.place / f"output_{len(self.attempts)}"
        attempt = Attempt(command, self.run, output, surroundings)
        self.attempts.append(attempt)
        return attempt


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same for all processes that it is spread over."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "faults"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def start(tmp_path: Path, shared: Path) -> Iterator[Starter]:
    """Start a run in this test's folder, once or again; nothing of it remains after the test."""
    starter = Starter(place=tmp_path, shared=shared, attempts=[])
    yield starter
    for attempt in starter.attempts:
        attempt.kill()


@pytest.fixture(scope="session")
def uninterrupted(shared: Path) -> Callable[[int], Path]:
    """Give the folder of the run on so many processes to which nothing happened; what it noted lies beside it."""

    def make(processes: int) -> Path:
        place = shared / f"uninterrupted_{processes}"
        with FileLock(f"{place}.lock"):
            if not (place / "ended").exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                start = Starter(place=place, shared=shared, attempts=[])
                attempt = start("--output.keep_last", "100", processes=processes, program=OTHER_PROGRAMS / "noting.py")
                assert attempt.wait() == 0, attempt.output
                (place / "ended").touch()
        return place / "run"

    return make


@pytest.fixture
def saved(uninterrupted: Callable[[int], Path], start: Starter) -> Path:
    """An interrupted run in this test's folder, with checkpoints of the steps 3, 6 and 9."""
    whole = uninterrupted(1)
    shutil.copytree(whole, start.run)
    for folder in (start.run / "checkpoints").iterdir():
        if folder.name > "step_00000009":
            shutil.rmtree(folder)
    return start.run


@pytest.fixture(scope="session")
def assert_ended_as(uninterrupted: Callable[[int], Path]) -> Callable[[Path, int], None]:
    """A run has ended as the uninterrupted one on so many processes did, to the last bit."""

    def compare(run: Path, processes: int) -> None:
        expected = uninterrupted(processes)
        for place in (f"checkpoints/step_{STEPS:08d}", "best"):
            for name in ("weights", "moments", "prompts"):
                file = f"{place}/{name}.safetensors"
                assert (run / file).read_bytes() == (expected / file).read_bytes(), file
        assert [without_measured(record) for record in steps(run)] == [
            without_measured(record) for record in steps(expected)
        ]
        assert epochs(run) == epochs(expected)

    return compare


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """Keys in the environment of every run, by name."""
    return SECRETS


@pytest.fixture(scope="session")
def noting() -> Path:
    """A program that notes what each process is given."""
    return OTHER_PROGRAMS / "noting.py"


@pytest.fixture(scope="session")
def failing() -> Path:
    """A program in which a rank raises what nobody expects."""
    return OTHER_PROGRAMS / "failing.py"


@pytest.fixture(scope="session")
def poisoned() -> Path:
    """A program in which numbers are not finite, in the steps that `POISON` gives."""
    return OTHER_PROGRAMS / "poisoned.py"


@pytest.fixture(scope="session", name="epochs")
def epochs_of() -> Callable[[Path], list[dict[str, Any]]]:
    """Give the records of a run's epochs, without its pace."""
    return epochs


def steps(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def epochs(run: Path) -> list[dict[str, Any]]:
    recorded: list[dict[str, Any]] = without_measured(json.loads((run / "metrics.json").read_text())["epochs"])
    return recorded


SWEEPS = (("kill", 1), ("kill", 2), ("lose power", 1), ("ENOSPC", 1), ("EIO", 2))
"""What happens at every operation of a save, and how many checkpoints are kept."""


@pytest.fixture(scope="session")
def sweep(shared: Path) -> Callable[[str, int], list[dict[str, Any]]]:
    """Give what happened, and what was left, when a save had the fault `do` at each operation in turn."""
    with FileLock(shared / "sweep.lock"):
        if not (shared / "sweep.json").exists():
            told = [str(word) for pair in SWEEPS for word in pair]
            command = [sys.executable, str(PROGRAMS / "sweep.py"), *told]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            assert done.returncode == 0, done.stderr
            (shared / "sweep.json").write_text(done.stdout)
    outcomes = json.loads((shared / "sweep.json").read_text())
    return lambda do, keep_last: [
        outcome for outcome in outcomes if (outcome["do"], outcome["keep_last"]) == (do, keep_last)
    ]
