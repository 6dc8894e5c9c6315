"""A queue of tasks over processes, and the folder of the answers, with which it continues after an interruption."""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arcdist.data import Task
from arcdist.distributed import is_main, rank, world_size
from arcdist.distributed.collectives import broadcast_text
from arcdist.errors import ConfigError, DataError, NotFiniteError, SaveError, kind_and_reason, reason
from arcdist.evaluation.predict import Candidate
from arcdist.files import replacing
from arcdist.formatting import counted, duration
from arcdist.solving.results import Answers
from arcdist.solving.task_solver import TaskSolver
from arcdist.tracking.console import ProgressBar
from arcdist.tracking.run_folder import held, own, readable

_logger = logging.getLogger(__name__)

PROTOCOL = "protocol.json"
_ELSEWHERE = "choose another with --output_dir FOLDER"
_POLL_SECONDS = 0.5


class Queue:
    """Tasks that processes answer, each into a file of its own: what is there already is not answered again.

    Args:
        folder: of the answers, which process 0 has claimed.
        solver: answers a task.
        tasks: all of them.
    """

    def __init__(self, folder: Path, solver: TaskSolver, tasks: Sequence[Task]) -> None:
        self._folder = folder / "tasks"
        self._solver = solver
        self._tasks = tasks
        # As process 0 sees the disk, so that all share out the same ones.
        self._left: list[int] = json.loads(broadcast_text(json.dumps(self._absent(range(len(tasks))))))

    def run(self) -> None:
        """Answer this process's share of what is left, and wait until the others have answered theirs."""
        costs = {place: self._solver.cost(self._tasks[place]) for place in self._left}
        own = _share(costs)
        if is_main() and len(self._left) < len(self._tasks):
            _logger.info("%s answered already.", self.progress())
        # One of middle size first, which shows how long all will take; then the longest, so that none is left over.
        if own:
            own.insert(0, own.pop(len(own) // 2))
        done = len(self._tasks) - len(self._left)
        bar = ProgressBar(len(self._tasks), done=done, quiet=not is_main() or not self._left)
        waiting = self._left
        with bar:
            for number, place in enumerate(own):
                start = time.monotonic()
                self._answer(place)
                if number == 0 and is_main() and len(own) > 1:
                    whole = (time.monotonic() - start) * sum(costs[each] for each in own) / costs[place]
                    _logger.info(
                        "%s to answer, about %s. An interrupted evaluation continues with --output_dir %s.",
                        counted(len(self._left), "task"),
                        duration(whole),
                        self._folder.parent,
                    )
                waiting = self._count(waiting, bar)
            while waiting := self._count(waiting, bar):
                time.sleep(_POLL_SECONDS)

    def progress(self) -> str:
        """How many tasks are answered, in words."""
        done = len(self._tasks) - len(self._absent(range(len(self._tasks))))
        return f"{done:,} of {counted(len(self._tasks), 'task')}"

    def answers(self) -> dict[str, Answers]:
        """What was answered, by task.

        Raises:
            DataError: a file of answers is broken.
        """
        found = {}
        for place, task in enumerate(self._tasks):
            with readable(self._file(place), "an answered task", "remove it, and start once more: that task is"
                          " answered again"):  # fmt: skip
                raw = json.loads(self._file(place).read_text(encoding="utf-8"))
                found[task.id] = Answers(
                    outputs=list(map(_unpacked, raw["outputs"])),
                    failed=raw["failed"],
                    seconds=raw["seconds"],
                    not_held_out=raw["not_held_out"],
                )
        return found

    def _count(self, waiting: list[int], bar: ProgressBar) -> list[int]:
        """Count what has been answered meanwhile, by any process; what has not."""
        left = self._absent(waiting)
        if len(left) < len(waiting):
            bar.advance(len(waiting) - len(left), label="answering")
        return left

    def _absent(self, places: Iterable[int]) -> list[int]:
        return [place for place in places if not self._file(place).exists()]

    def _answer(self, place: int) -> None:
        task, failed = self._tasks[place], None
        outputs: list[list[Candidate]] = [[] for _ in task.tests]
        start = time.monotonic()
        for is_last in (False, True):
            try:
                outputs, failed = self._solver.answer(task), None
                if unanswered := sum(not each for each in outputs):
                    of_all = f"{counted(unanswered, 'test pair')} of {len(outputs)} not answered"
                    failed = f"{of_all}: {self._solver.too_long[task.id]}"
                    _logger.warning("Task %s, %s", task.id, failed)
                break
            except (DataError, NotFiniteError) as error:
                failed = str(error)
                _logger.warning("Task %s is not answered: %s", task.id, failed)
                break
            except Exception as error:  # One task must not end an evaluation of hours.
                failed = kind_and_reason(error)
                again = "and counts as wrong" if is_last else "and is tried once more"
                _logger.warning("Task %s failed, %s: %s", task.id, again, failed)
        content = {
            "task": task.id,
            "failed": failed,
            "seconds": time.monotonic() - start,
            "not_held_out": self._solver.not_held_out(task) if any(outputs) else None,
            "outputs": list(map(_packed, outputs)),
        }
        with writable(self._folder.parent), replacing(self._file(place)) as partial:
            partial.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")

    def _file(self, place: int) -> Path:
        return self._folder / f"{place:05d}.json"


def _packed(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Candidates for a file: each different grid is in there once, and hundreds of views may agree."""
    grids = {grid: number for number, grid in enumerate(dict.fromkeys(each.grid for each in candidates))}
    return {"grids": list(grids), "candidates": [asdict(each) | {"grid": grids[each.grid]} for each in candidates]}


def _unpacked(content: Mapping[str, Any]) -> list[Candidate]:
    grids = [tuple(map(tuple, grid)) for grid in content["grids"]]
    return [Candidate(**each | {"grid": grids[each["grid"]]}) for each in content["candidates"]]


def _share(costs: Mapping[int, float]) -> list[int]:
    """The tasks of this process: each in turn goes to the process with least to do so far, the longest first."""
    loads = [0.0] * world_size()
    shares: list[list[int]] = [[] for _ in loads]
    for place in sorted(costs, key=lambda place: (-costs[place], place)):
        least = min(range(len(loads)), key=loads.__getitem__)
        shares[least].append(place)
        loads[least] += costs[place]
    return shares[rank()]


@contextmanager
def claimed(folder: Path, protocol: Mapping[str, Any]) -> Iterator[None]:
    """Make a folder that the answers under a protocol belong to, or find it again, and keep others out of it.

    Raises:
        ConfigError: it cannot be written, holds something else, or another process is writing there.
    """
    file = folder / PROTOCOL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held_by_others = sorted(entry.name for entry in folder.iterdir() if entry.name != ".lock")
    except OSError as error:
        raise ConfigError(f"The output folder {folder} cannot be written ({reason(error)}): {_ELSEWHERE}.") from error
    if held_by_others and not file.exists():
        raise ConfigError(f"{folder} holds {held_by_others[0]}, and no answers to continue: {_ELSEWHERE}.")
    with held(own(folder, "answering puzzles")):
        if file.exists():
            with readable(file, "the protocol of answers"):
                before = dict(json.loads(file.read_text(encoding="utf-8")))
            now = json.loads(json.dumps(protocol))
            differing = _differing(before, now)
            if differing:
                raise ConfigError(f"{folder} holds answers of another kind ({differing}): {_ELSEWHERE}.")
        else:
            with writable(folder), replacing(file) as partial:
                partial.write_text(json.dumps(protocol, indent=2) + "\n", encoding="utf-8")
        with writable(folder):
            (folder / "tasks").mkdir(exist_ok=True)
        yield


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two protocols disagree in. One run may be named by several paths: its weights tell it from others."""
    flat = [
        {**protocol, **{f"solve.{name}": value for name, value in protocol.get("solve", {}).items()}}
        for protocol in (now, before)
    ]
    names = [name for name in flat[0] if name not in ("run", "solve")]
    return ", ".join(
        f"{name} is {flat[0][name]}, there {flat[1].get(name)}" for name in names if flat[0][name] != flat[1].get(name)
    )


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say how to continue if something cannot be written in the folder.

    Raises:
        SaveError: that is so.
    """
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{folder} cannot be written ({reason(error)}): make room there. What is answered is kept, and the same "
            f"command with --output_dir {folder} continues."
        ) from error
