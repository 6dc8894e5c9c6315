"""Answers for all puzzles of a source: a queue of tasks over processes, and what it leaves."""

import json
import logging
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from arcdist.config import LoadedConfig
from arcdist.config.loader import run_of
from arcdist.config.schema import section_arguments
from arcdist.data import Collator, Origin, Task, TaskSet, build_queries, read_task_sets, tasks_digest
from arcdist.data.queries import Kind, Queries
from arcdist.distributed import is_main, rank, world_size
from arcdist.distributed.collectives import broadcast_text, shutdown
from arcdist.engine.platform import start_platform
from arcdist.errors import ConfigError, DataError, SaveError, kind_and_reason, reason
from arcdist.evaluation.adapt import Adapting, adapted
from arcdist.evaluation.predict import Candidate, Proposing, propose
from arcdist.files import expanded, replacing
from arcdist.formatting import counted, duration
from arcdist.solving.results import Answers, write_results
from arcdist.solving.trained import Trained, changed_keys, read_trained
from arcdist.tracking import no_log, open_log
from arcdist.tracking.console import ProgressBar
from arcdist.tracking.run_folder import held, own, readable

_logger = logging.getLogger(__name__)

PROTOCOL = "protocol.json"
_ELSEWHERE = "choose another with --output_dir FOLDER"
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The tasks that are answered, and how they relate to those that were trained on."""

    tasks: TaskSet
    protocol: str
    """One of `results.PROTOCOLS`."""
    max_side: int
    """Longest side of a task that is answered."""


def evaluate(loaded: LoadedConfig) -> None:
    """Answer the puzzles that a command line asks for; all processes call it together.

    Raises:
        ArcdistError: of the kind that says whose mistake it is.
        KeyboardInterrupt: after Ctrl-C; what is answered is kept.
    """
    config = loaded.config
    if len(loaded.arguments) > 1:
        raise ConfigError(f"Give one run: there are {counted(len(loaded.arguments), 'word')} beside the flags.")
    path = expanded(loaded.arguments[0])
    with open_log(None) if is_main() else no_log():
        platform = start_platform(config)
        trained = read_trained(path, config, platform.accelerator.device)
        scored = find_scored(loaded, trained)
        # What the first process of a machine prepares, the others find in the cache.
        with platform.accelerator.local_main_process_first():
            solver = Solver.of(trained, loaded, scored.tasks.used)
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        named = expanded(config.output.dir) if config.output.dir else run_of(path) / "solve" / now
        folder = Path(broadcast_text(str(named.absolute())))
        protocol = {
            "run": trained.origin,
            "weights": trained.digest,
            "changed": changed_keys(config, trained.config),
            "tasks": tasks_digest(scored.tasks.used),
            "trained_on": str(Origin(trained.config.data.source, trained.config.data.split)),
            "trained_tasks": len(trained.tasks),
            "scored": str(scored.tasks.origin),
            "protocol": scored.protocol,
            "solve": section_arguments(config.solve),
            "seed": config.train.seed,
        }
        with claimed(folder, protocol) if is_main() else nullcontext():
            queue = Queue(folder, solver, scored.tasks.used)
            try:
                queue.run()
            except KeyboardInterrupt:
                _logger.warning("Interrupted. %s answered; --output_dir %s continues.", queue.progress(), folder)
                raise
            if is_main():
                with _writable(folder):
                    write_results(folder, scored.tasks, queue.answers(), protocol, scored.max_side)
    shutdown()


def find_scored(loaded: LoadedConfig, trained: Trained) -> Scored:
    """The tasks that a command line asks to answer: the run's own validation tasks unless it names a source.

    Raises:
        DataError: there are none, or they were trained on and nothing accepts it.
    """
    ours, data = trained.config.data, loaded.config.data

    def is_given(key: str) -> bool:
        return loaded.sources[key] == "flag"

    if not (is_given("data.source") or is_given("data.split")):
        sets = read_task_sets(ours)
        # As the run validates them: what it leaves out there is not asked here either.
        own = replace(sets.validation, tasks=sets.validation.used)
        transductive = sets.joins(sets.validation)
        seen = "seen" if sets.validation is sets.training else "transductive" if transductive else "unseen"
        return Scored(tasks=own, protocol=seen, max_side=ours.max_side)
    wanted = replace(
        data,
        validation_source=None,
        also_demonstrations_of=(),
        max_side=data.max_side if is_given("data.max_side") else trained.longest_side,
        max_tasks=data.max_tasks if is_given("data.max_tasks") else None,
    )
    asked = read_task_sets(wanted).training
    try:
        sets = read_task_sets(replace(ours, validation_source=None))
    except DataError as error:
        _logger.warning("What the run was trained on cannot be read, so only ids are compared. %s", error)
        shared = sorted({task.id for task in asked.used} & set(trained.tasks))
        if shared and asked.origin.source not in data.allow_overlap:
            raise DataError(
                f"{len(shared)} tasks of {asked.origin} have ids of tasks that the run was trained on "
                f"({', '.join(shared[:5])}): score others, or give --data.allow_overlap "
                f"{shlex.quote(asked.origin.source)} to accept it."
            ) from error
        return Scored(tasks=asked, protocol="overlapping" if shared else "unseen", max_side=wanted.max_side)
    if sets.training.origin == asked.origin:
        if asked.origin.source not in data.allow_overlap:
            raise DataError(
                f"The run was trained on {asked.origin}, so that a score there says little: leave out --data.source "
                f"and --data.split to score what its validation scored, or give --data.allow_overlap "
                f"{shlex.quote(asked.origin.source)} to accept it."
            )
        return Scored(tasks=asked, protocol="seen", max_side=wanted.max_side)
    leaks = replace(sets, validation=asked).check_leaks(data.allow_overlap)
    overlaps = leaks.shared_ids or leaks.shared_contents
    transductive = sets.joins(asked)
    protocol = "overlapping" if overlaps else "transductive" if transductive else "unseen"
    return Scored(tasks=asked, protocol=protocol, max_side=wanted.max_side)


@dataclass(frozen=True, kw_only=True, slots=True)
class Solver:
    """Answers one task after another; what it answers depends on nothing but the task."""

    trained: Trained
    proposing: Proposing
    adapting: Adapting
    tests: Queries | None
    demonstrations: Queries | None
    collator: Collator
    refused: Mapping[str, str]
    """Tasks that are too long for Qwen, and how."""

    @classmethod
    def of(cls, trained: Trained, loaded: LoadedConfig, tasks: Sequence[Task]) -> "Solver":
        """Prepare the queries of some tasks."""
        solve, seed, augment = loaded.config.solve, loaded.config.train.seed, trained.config.data.augment
        tokenizer = trained.predictor.qwen.tokenizer
        refused: dict[str, str] = {}

        def queries(kind: Kind, needed: bool) -> Queries | None:
            if not needed:
                return None
            built = build_queries(tasks, kind)
            for task in built.asked:
                try:
                    replace(built, asked=(task,)).limited(None, tokenizer.max_tokens)
                except DataError as error:
                    refused[task.id] = str(error)
            return replace(built, max_pairs=loaded.config.data.max_context_pairs, max_tokens=tokenizer.max_tokens)

        learns = solve.adapt_steps > 0 or solve.draws > 0
        return cls(
            trained=trained,
            proposing=Proposing(
                views=solve.views,
                draws=solve.draws,
                steps=solve.steps,
                memory=solve.memory,
                qwen=solve.qwen and trained.predictor.qwen.lm_head is not None,
                batch_size=solve.batch_size,
                seed=seed,
                tell_symmetry=augment.dihedral,
            ),
            adapting=Adapting(
                steps=solve.adapt_steps,
                lr=solve.adapt_lr,
                part=solve.adapt_part,
                batch_size=solve.batch_size,
                seed=seed,
                tell_symmetry=augment.dihedral,
            ),
            tests=queries("test", any(task.tests for task in tasks)),
            demonstrations=queries("train", learns and any(len(task.demonstrations) > 1 for task in tasks)),
            collator=Collator(
                tokenizer,
                task_rows={name: row for row, name in enumerate(trained.tasks)},
                max_grid_size=trained.longest_side,
            ),
            refused=refused,
        )

    def answer(self, task: Task) -> list[list[Candidate]]:
        """The candidates for each test pair of a task.

        Raises:
            DataError: it is too long for Qwen.
        """
        if task.id in self.refused:
            raise DataError(self.refused[task.id])
        if not task.tests or self.tests is None:
            return []
        asked = self.tests.read(self.tests.of_task(task.id))
        shown = self.demonstrations.read(self.demonstrations.of_task(task.id)) if self.demonstrations else []
        trained = self.trained
        with (
            trained.autocast(),
            adapted(trained.predictor, self.collator, task.id, shown, self.adapting, trained.device) as (own, collator),
        ):
            return propose(own, collator, asked, shown, self.proposing, trained.device)

    def cost(self, task: Task) -> float:
        """How much there is to compute for a task, in any unit."""
        cells = sum(pair.input.size for pair in task.tests) * self.proposing.views
        cells += self.adapting.steps * self.adapting.batch_size * task.demonstrations[0].input.size
        return float(cells + 1)


class Queue:
    """Tasks that processes answer, each into a file of its own: what is there already is not answered again.

    Args:
        folder: of the answers, which process 0 has claimed.
        solver: answers a task.
        tasks: all of them.
    """

    def __init__(self, folder: Path, solver: Solver, tasks: Sequence[Task]) -> None:
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
            _logger.info("%s already.", self.progress())
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
                outputs = list(map(_unpacked, raw["outputs"]))
                found[task.id] = Answers(outputs=outputs, failed=raw["failed"], seconds=raw["seconds"])
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
                break
            except DataError as error:
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
            "outputs": list(map(_packed, outputs)),
        }
        with _writable(self._folder.parent), replacing(self._file(place)) as partial:
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
            with _writable(folder), replacing(file) as partial:
                partial.write_text(json.dumps(protocol, indent=2) + "\n", encoding="utf-8")
        with _writable(folder):
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
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{folder} cannot be written ({reason(error)}): make room there. What is answered is kept, and the same "
            f"command with --output_dir {folder} continues."
        ) from error
