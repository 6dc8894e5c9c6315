"""What the tests of whole runs share: a run of seconds, and a process that is left as it was found."""

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

TINY_RUN = """\
data: {max_tasks: 4, max_side: 5}
qwen: {model: "embedded:tiny", dtype: float32}
agent: {hidden_dim: 16, max_steps: 2}
solver: {capacity: 32}
train: {epochs: 1, max_batches: 2, batch_size: 4, device: cpu, cpu_threads: 1}
output: {log_every: 1, save_every: 1}
tracking: {wandb: disabled}
"""


def pytest_configure() -> None:
    """Collect no garbage while everything is imported; see `arcdist.cli.quick_imports`."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, but not among what is imported by now."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Over several test processes: files with slow tests first, so that none is left over in the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each test process whole files, or all launched runs of a launcher file: their tests share fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            found = re.search(r"\[(\w+)[-\]]", test) if "/launched/" in file else None
            return found[1] if found else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def tiny_flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags of a run of seconds on the CPU, with any recipe; other flags go after them."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(TINY_RUN)
    return ("--config", str(file))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, int], Any]]:
    """Give the processes, so many under a launcher file, that wait for runs."""
    from shared.ranks import RankPool

    pool = RankPool(tmp_path_factory.mktemp("ranks"))
    yield pool.ranks
    pool.close()


@dataclass(frozen=True)
class Ended:
    """How a program has ended."""

    codes: list[int]
    """Of its processes; of one that a signal ended, its number below 0."""
    out: str
    err: str

    @property
    def code(self) -> int:
        """That all processes have ended with."""
        (code,) = set(self.codes)
        return code


@pytest.fixture(scope="session")
def start_program(
    ranks: Callable[[str, int], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Any, Callable[[], Ended]]]:
    """Start a program of launch/ on a launcher's waiting processes: these, and a function that waits for their end."""
    from shared.ranks import CHECKOUT

    def start(
        name: str, *argv: Any, config: str = "python", processes: int = 1, cwd: Path | None = None
    ) -> tuple[Any, Callable[[], Ended]]:
        folder = tmp_path_factory.mktemp("program")
        out, err = folder / "out", folder / "err"
        command = [str(CHECKOUT / "launch" / name), *map(str, argv)]
        running = ranks(config, processes).start(command, cwd or folder, out, err, {"COLUMNS": "80"})

        def end() -> Ended:
            codes = running.wait()
            return Ended(codes, *(file.read_text() if file.exists() else "" for file in (out, err)))

        return running, end

    return start


@pytest.fixture(scope="session")
def run_program(start_program: Callable[..., Any]) -> Callable[..., Ended]:
    """Start a program of launch/ and wait until it has ended."""
    return lambda *argv, **how: start_program(*argv, **how)[1]()


@pytest.fixture(scope="session")
def trained_run(
    run_program: Callable[..., Ended], tiny_flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run of three steps on 12 tasks, which nobody changes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    more = ("--data.max_tasks", "12", "--data.max_side", "6", "--max_batches", "3")
    ended = run_program("train.py", *tiny_flags, *more, "--output_dir", folder)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def clean_process(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Take back what building a session sets for the whole process."""
    import datasets
    from accelerate.state import AcceleratorState, GradientState

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    threads = torch.get_num_threads()
    # Building a session sets some of these variables and reads others; naming them here has them put back.
    for name in (
        *("ACCELERATE_TORCH_DEVICE", "ACCELERATE_MIXED_PRECISION", "DS_ACCELERATOR"),
        *("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE"),
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "huggingface")
    forget()
    yield
    forget()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def build_tiny(clean_process: None, tiny_flags: tuple[str, ...]) -> Callable[..., Any]:
    """Build the session of a tiny run, with more flags on top."""
    from accelerate.state import AcceleratorState

    from arcdist.config import load_config
    from arcdist.training.session import build_session

    def build(*flags: str) -> Any:
        AcceleratorState._reset_state(reset_partial_state=True)  # two sessions may differ in precision
        return build_session(load_config([*tiny_flags, *flags]).config)

    return build


@pytest.fixture(scope="session")
def scale_losses() -> Callable[[Any, float], None]:
    """Have a `Precision` scale losses as under float16, but compute in float32, where powers of 2 are never rounded."""

    def scale(precision: Any, loss_scale: float) -> None:
        precision.dtype = torch.float16
        precision.autocast = nullcontext
        precision.loss_scale = loss_scale

    return scale


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Any], dict[str, Tensor]]:
    """Every tensor in nested tuples, mappings and dataclasses, by its path."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield path, value
        elif is_dataclass(value):
            for field in fields(value):
                yield from walk(getattr(value, field.name), f"{path}.{field.name}")
        elif isinstance(value, dict):
            for key, entry in value.items():
                yield from walk(entry, f"{path}.{key}")
        elif isinstance(value, list | tuple):
            for index, entry in enumerate(value):
                yield from walk(entry, f"{path}[{index}]")

    return lambda value: dict(walk(value, ""))
