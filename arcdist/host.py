"""The machine and the software that a run uses: cores, memory, versions."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OF_PROCESS = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores that the process may run on, before any limit on their time."""
    # Not every system says which ones those are.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """How many cores the process can keep busy."""
    limit = most_cores()
    return available_cores() if limit is None else max(1, min(available_cores(), int(limit)))


def most_cores(root: Path = _ROOT, of_process: Path = _OF_PROCESS) -> float | None:
    """Cores whose time the process may use; None without a limit."""
    limits = []
    for group in _groups(root, of_process):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_left(root: Path = _ROOT, of_process: Path = _OF_PROCESS) -> int | None:
    """Bytes that the process may still allocate; None without a limit."""
    left = []
    for group in _groups(root, of_process):
        limit, used = _read(group / "memory.max"), _read(group / "memory.current")
        if limit.isdigit() and used.isdigit():
            # Files in the cache count as used, but are dropped when memory is needed.
            lines = (line.split() for line in _read(group / "memory.stat").splitlines())
            cached = sum(int(words[1]) for words in lines if words[0] == "inactive_file")
            left.append(int(limit) - int(used) + cached)
    return min(left, default=None)


def _groups(root: Path, of_process: Path) -> Iterator[Path]:
    """The process's group and those that it is in."""
    for line in _read(of_process).splitlines():
        if line.startswith("0::/"):
            group = root / line.removeprefix("0::/")
            yield group
            yield from (parent for parent in group.parents if parent.is_relative_to(root))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


_PACKAGES = ("arcdist", "torch", "accelerate", "deepspeed", "transformers", "peft", "wandb")


def versions() -> dict[str, str]:
    """Version of each package that a run's numbers may depend on; those that are not installed are left out."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_commit() -> str | None:
    """The commit that arcdist runs from, with `+changes` if files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else commit + ("+changes" if changes else "")


def _git(root: Path, *command: str) -> str | None:
    try:
        command = ("git", "-C", str(root), *command)
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
