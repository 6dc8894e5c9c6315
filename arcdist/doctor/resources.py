"""What the machine has: cores, memory, room on disks, and leave to write there."""

import shutil
import tempfile
from pathlib import Path

import datasets
import psutil  # type: ignore[import-untyped]
import torch

from arcdist.config import OutputConfig, TrainConfig
from arcdist.config.resumed import DEFAULT_ROOT
from arcdist.distributed import local_world_size
from arcdist.doctor.finding import Finding, failure, warning
from arcdist.errors import ConfigError, PlatformError
from arcdist.machine import cores_at_hand, memory_left, usable_cores
from arcdist.paths import expanded
from arcdist.tracking.run_folder import taken_by

GIB = 2**30
_LITTLE_MEMORY = 1 * GIB
"""What a process needs before it has read anything: its libraries."""
_LITTLE_ROOM = 1 * GIB


def check_cores(train: TrainConfig) -> Finding:
    """Whether the processes of this machine have a core for each of their threads."""
    at_hand, cores = cores_at_hand(), usable_cores()
    processes = local_world_size()
    # Beside a GPU a process keeps one busy.
    threads = 1 if torch.cuda.is_available() and train.device != "cpu" else torch.get_num_threads()
    found = f"{_count(cores, 'core')} for {_count(processes, 'process', 'es')} of {_count(threads, 'thread')}"
    if cores < at_hand:
        found += f" (the machine has {at_hand}, a container or batch system leaves fewer)"
    if processes > cores:
        return warning(found, f"Start at most {_count(cores, 'process', 'es')} a machine, or ask for more cores.")
    if processes * threads > cores:
        return warning(found, f"Give each process as many threads as cores: --train.cpu_threads {cores // processes}.")
    return Finding(found=found)


def check_memory() -> Finding:
    """Whether the processes of this machine find room in its memory at all; `--fit` measures what they need."""
    memory = psutil.virtual_memory()
    limit = memory_left()
    free = memory.available if limit is None else min(memory.available, limit)
    found = f"{free / GIB:.0f} of {memory.total / GIB:.0f} GiB free"
    if free < local_world_size() * _LITTLE_MEMORY:
        return warning(
            found, "A process needs 1 GiB and more: close other programs, start fewer processes, or ask for more."
        )
    return Finding(found=found)


def check_output(output: OutputConfig) -> Finding:
    """Whether the run folder can be made and written; it is not made."""
    named = output.dir
    folder = DEFAULT_ROOT if named is None else expanded(named)
    mend = "Choose another with --output_dir FOLDER."
    taken = [] if named is None else taken_by(folder)
    if taken:
        return failure(f"{folder} holds another run ({', '.join(taken)})", mend, ConfigError.exit_code)
    return _check_folder(folder, mend, ConfigError.exit_code)


def check_cache() -> Finding:
    """Whether queries can be prepared where `datasets` keeps its files."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    return _check_folder(folder, "Set HF_HOME or HF_DATASETS_CACHE to a folder that can be written, with room in it.")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that there is."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _check_folder(folder: Path, mend: str, exit_code: int = PlatformError.exit_code) -> Finding:
    there = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"arcdist")
        room = shutil.disk_usage(there).free
    except OSError as error:
        return failure(f"{folder} cannot be written: {error.strerror} ({there})", mend, exit_code)
    found = f"{folder} can be written, {room / GIB:.0f} GiB free"
    return warning(found, f"Make room there. {mend}") if room < _LITTLE_ROOM else Finding(found=found)


def _count(number: int, one: str, plural: str = "s") -> str:
    return f"{number} {one}{'' if number == 1 else plural}"
