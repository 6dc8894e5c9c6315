"""Faults of disks and machines, put into the functions by which Python changes files.

Operations are written as words, such as `write checkpoints/.step_00000003.partial/state.json`: a kind (open, write,
fsync, rename, mkdir, unlink, rmdir) and a path in the run folder, of a renaming the one of before.
"""

import builtins
import errno
import io
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What happens, and at which operation."""

    do: str = "nothing"
    """`kill` (at once, a write half done), `lose power` (what was not forced to disk is lost too), the name of an
    error such as `ENOSPC` (a write half done), or that of a signal to this process, such as `SIGTERM`."""
    match: str = ""
    """A regular expression; the operations in which it is found count."""
    at: int = 1
    """The first one of them that it happens at."""
    times: int = 1
    """How many it happens at."""
    rank: int = 0
    """The process that it happens to."""


class Faults:
    """Counts the operations of this process in a folder, and lets the fault happen when it is due."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.operations: list[str] = []
        """Those that counted so far."""
        self._folder = str(folder.resolve())
        self._fault = fault
        self._disk = _Disk(folder.with_suffix(".lost")) if fault.do == "lose power" else None

    def install(self) -> None:
        """From here on, until the process ends."""
        builtins.open = io.open = self._opening(io.open)  # type: ignore[assignment]
        for name in ("rename", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, self._changing(getattr(os, name), "rename" if name == "replace" else name))
        os.fsync = self._forcing(os.fsync)  # type: ignore[assignment]

    def due(self, kind: str, path: str) -> bool:
        """Count an operation; whether the fault is to happen at it."""
        if not self._is_within(path):
            return False
        operation = f"{kind} {os.path.relpath(path, self._folder)}"
        if not re.search(self._fault.match, operation):
            return False
        self.operations.append(operation)
        return self._fault.at <= len(self.operations) < self._fault.at + self._fault.times

    def happen(self, path: str) -> None:
        """Let the fault happen."""
        do = self._fault.do
        if self._disk:
            self._disk.lose_power()
        if do in ("kill", "lose power"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif do.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[do])
        elif do.startswith("E"):
            code = getattr(errno, do)
            raise OSError(code, os.strerror(code), path)

    def _is_within(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self._folder}/")

    def _opening(self, original: Callable[..., IO[Any]]) -> Callable[..., IO[Any]]:
        def opened(
            file: Any, mode: str = "r", buffering: int = -1, *text: Any, opener: Any = None, **keywords: Any
        ) -> IO[Any]:
            if isinstance(file, int) or opener or not set(mode) & set("wax+"):
                return original(file, mode, buffering, *text, opener=opener, **keywords)
            path = _absolute(file)
            if not self._is_within(path):
                return original(file, mode, buffering, *text, **keywords)
            if self.due("open", path):
                self.happen(path)
            if self._disk and not Path(path).exists():
                self._disk.made(path)
            raw = _File(path, re.sub("[bt]", "", mode), self)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **keywords)

        return opened

    def _changing(self, original: Callable[..., None], kind: str) -> Callable[..., None]:
        def changed(path: Any, *others: Any, **keywords: Any) -> None:
            place = _absolute(path, keywords.get("dir_fd"))
            if self.due(kind, place):
                self.happen(place)
            original(path, *others, **keywords)
            if self._disk and kind == "mkdir" and self._is_within(place):
                self._disk.made(place)
            elif self._disk and kind == "rename" and self._is_within(place):
                self._disk.renamed(place, _absolute(others[0]))

        return changed

    def _forcing(self, original: Callable[[int], None]) -> Callable[[int], None]:
        def forced(descriptor: Any) -> None:
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            if self.due("fsync", path):
                self.happen(path)
            original(descriptor)
            if self._disk:
                self._disk.forced(descriptor)

        return forced

    def _writing(self, file: "_File", content: Any) -> int:
        path = str(file.name)
        if self._disk:
            self._disk.written(file.fileno())
        if self.due("write", path):
            io.FileIO.write(file, memoryview(content)[: len(content) // 2])
            self.happen(path)
        return io.FileIO.write(file, content)


class _File(io.FileIO):
    def __init__(self, path: str, mode: str, faults: Faults) -> None:
        super().__init__(path, mode)
        self._faults = faults

    def write(self, content: Any) -> int:
        return self._faults._writing(self, content)


class _Disk:
    """What a disk may lose with the power: content of files and entries of folders that nobody forced to it."""

    def __init__(self, lost: Path) -> None:
        self._lost = lost
        self._unforced: list[tuple[tuple[int, int], Callable[[], None]]] = []  # whose they are, and what undoes them

    def written(self, descriptor: int) -> None:
        kept = os.dup(descriptor)  # finds the file wherever it is moved
        self._unforced.append((_identity(kept), lambda: os.ftruncate(kept, 0)))

    def made(self, path: str) -> None:
        folder, name = self._parent(path)
        self._unforced.append((_identity(folder), lambda: self._lose(name, folder)))

    def renamed(self, before: str, now: str) -> None:
        (folder, name), old = self._parent(now), Path(before).name
        self._unforced.append((_identity(folder), lambda: os.rename(name, old, src_dir_fd=folder, dst_dir_fd=folder)))

    def forced(self, descriptor: int) -> None:
        self._unforced = [entry for entry in self._unforced if entry[0] != _identity(descriptor)]

    def lose_power(self) -> None:
        entries, self._unforced = self._unforced, []
        for _, undo in reversed(entries):
            with suppress(OSError):  # It has been removed since, or what was there before has been replaced.
                undo()

    def _lose(self, name: str, folder: int) -> None:
        self._lost.mkdir(exist_ok=True)
        os.rename(name, self._lost / f"{sum(1 for _ in self._lost.iterdir())}_{name}", src_dir_fd=folder)

    @staticmethod
    def _parent(path: str) -> tuple[int, str]:
        return os.open(Path(path).parent, os.O_RDONLY), Path(path).name


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _absolute(path: Any, folder: int | None = None) -> str:
    start = Path.cwd() if folder is None else Path(f"/proc/self/fd/{folder}").readlink()
    return str(start / os.fsdecode(path))
