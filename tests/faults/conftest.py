"""Whole runs of the real program, to which something happens on the way.

Every run of these tests has the same configuration and seed: one that was killed and resumed must end as the
uninterrupted one did, which is made once a number of processes, whichever test processes ask for it.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from shared.measured import without_measured
from shared.ranks import Ranks, RunningRanks, environment_of_runs, folder_of_session
from shared.ranks import launcher as launch_with
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
    """A start of a run: the launcher or the one process, all its processes, and what they write to their terminal."""

    def __init__(self, run: Path, output: Path, running: psutil.Popen | RunningRanks) -> None:
        self.run = run
        self._output = output
        self._running = running
        self._code: int | None = None
        self.launcher = psutil.Process(running.pids[0]) if isinstance(running, RunningRanks) else running

    @property
    def output(self) -> str:
        """What all its processes have written so far."""
        return self._output.read_text()

    @property
    def resumed_from(self) -> int:
        """The step that it continued from; 0 if it began from nothing."""
        found = re.search(r"Resumed from \S+: step (\d+),", self.output)
        return int(found[1]) if found else 0

    def wait(self) -> int:
        """The exit code in the end: the launcher's, or that of the rank that went worst."""
        if self._code is None:
            ended = self._running.wait(SECONDS)
            self._code = max(ended, key=abs) if isinstance(ended, list) else ended
        return self._code

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Return as soon as something has happened, which has to be before the end."""
        give_up = time.monotonic() + SECONDS
        while not happened():
            assert self._is_running(), self.output
            assert time.monotonic() < give_up, self.output
            time.sleep(0.005)

    def _is_running(self) -> bool:
        if isinstance(self._running, RunningRanks):
            return not self._running.ended()
        return self._running.poll() is None

    def wait_for_step(self, step: int) -> None:
        """Return as soon as so many steps have been logged."""
        self.wait_until(lambda: self.last_step() >= step)

    def last_step(self) -> int:
        """The last one that was logged; 0 if there is none."""
        return last_step(self.run)

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        beat = json.loads((self.run / "heartbeats" / f"rank_{number:05d}.json").read_text())
        return psutil.Process(beat["pid"])

    def processes(self) -> list[psutil.Process]:
        """All that there are."""
        pids = self._running.pids if isinstance(self._running, RunningRanks) else [self._running.pid]
        found = []
        for pid in pids if self._code is None else []:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                found += [process, *process.children(recursive=True)]
        return found

    def left_of(self, processes: list[psutil.Process], seconds: float = 10.0) -> list[psutil.Process]:
        """Those that are still there after so many seconds."""
        give_up = time.monotonic() + seconds
        if not isinstance(self._running, RunningRanks):  # First: whoever else waits for it takes its exit code away.
            with suppress(psutil.TimeoutExpired):
                self._running.wait(seconds)
        left: list[psutil.Process] = psutil.wait_procs(processes, timeout=max(0.0, give_up - time.monotonic()))[1]
        return left

    def kill(self) -> None:
        """Kill all processes at once; none of them remains."""
        processes = self.processes()
        for process in processes:
            if process.is_running():
                process.kill()
        self.wait()
        assert self.left_of(processes) == []


def last_step(run: Path) -> int:
    """The last step of a run that was logged; 0 if there is none."""
    file = run / "steps.jsonl"
    whole = file.read_bytes().rpartition(b"\n")[0].splitlines() if file.exists() else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


@dataclass(frozen=True, kw_only=True)
class Starter:
    """Starts runs in one folder."""

    place: Path
    shared: Path
    ranks: Callable[[str, int], Ranks]
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
        """Start `program`, with a fault if one is given, in processes that wait for runs, or under its own launcher."""
        self.notes.mkdir(exist_ok=True)
        config = self.place / "fault_run.yaml"
        config.write_text(FAULT_RUN)
        more = {"NOTES": str(self.notes), **SECRETS, **(environment or {})}
        if fault is not None:
            program = PROGRAMS / "faulty.py"
            more |= {"FAULT": json.dumps(fault), "FAULT_FOLDER": str(self.run)}
        command = [str(program), "--config", str(config), "--output_dir", str(self.run), *flags]
        output = self.place / f"output_{len(self.attempts)}"
        running: psutil.Popen | RunningRanks
        if launcher:
            surroundings = environment_of_runs(self.shared / "huggingface", PYTHONUNBUFFERED="1", **more)
            command = [*launch_with(CONFIGS[processes]), *command]
            with output.open("w") as file:
                running = psutil.Popen(command, env=surroundings, stdout=file, stderr=file, cwd=self.place)
        else:
            ranks = self.ranks("python" if processes == 1 else CONFIGS[processes], processes)
            running = ranks.start(command, self.place, output, output, more)
        attempt = Attempt(self.run, output, running)
        self.attempts.append(attempt)
        return attempt


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same for all processes that it is spread over."""
    return folder_of_session(tmp_path_factory, "faults")


@pytest.fixture
def start(tmp_path: Path, shared: Path, ranks: Callable[[str, int], Ranks]) -> Iterator[Starter]:
    """Start a run in this test's folder, once or again; nothing of it remains after the test."""
    starter = Starter(place=tmp_path, shared=shared, ranks=ranks, attempts=[])
    yield starter
    for attempt in starter.attempts:
        attempt.kill()


@pytest.fixture(scope="session")
def uninterrupted(shared: Path, ranks: Callable[[str, int], Ranks]) -> Callable[[int], Path]:
    """Give the folder of the run on so many processes to which nothing happened; what it noted lies beside it."""

    def make(processes: int) -> Path:
        place = shared / f"uninterrupted_{processes}"
        with FileLock(f"{place}.lock"):
            if not (place / "ended").exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                start = Starter(place=place, shared=shared, ranks=ranks, attempts=[])
                keep = ("--output.keep_last", "100")
                attempt = start(*keep, processes=processes, launcher=False, program=OTHER_PROGRAMS / "noting.py")
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
            arguments = [str(word) for pair in SWEEPS for word in pair]
            command = [sys.executable, str(PROGRAMS / "sweep.py"), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            assert done.returncode == 0, done.stderr
            (shared / "sweep.json").write_text(done.stdout)
    outcomes = json.loads((shared / "sweep.json").read_text())
    return lambda do, keep_last: [
        outcome for outcome in outcomes if (outcome["do"], outcome["keep_last"]) == (do, keep_last)
    ]
