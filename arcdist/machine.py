"""What a process may use of its machine. Containers and batch systems limit it by Linux control groups, version 2."""

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OF_PROCESS = Path("/proc/self/cgroup")


def cores_at_hand() -> int:
    """Cores that the process may run on, before any limit on their time."""
    # Not every system tells which ones those are.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """How many cores the process can keep busy."""
    limit = most_cores()
    return cores_at_hand() if limit is None else max(1, min(cores_at_hand(), int(limit)))


def most_cores(root: Path = _ROOT, of_process: Path = _OF_PROCESS) -> float | None:
    """Cores whose time the process may use; none where nothing limits them."""
    limits = []
    for group in _groups(root, of_process):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_left(root: Path = _ROOT, of_process: Path = _OF_PROCESS) -> int | None:
    """Bytes that the process may still take; none where nothing limits them."""
    left = []
    for group in _groups(root, of_process):
        limit, used = _read(group / "memory.max"), _read(group / "memory.current")
        if limit.isdigit() and used.isdigit():
            # Files in the cache count as used, and go when memory is wanted.
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
