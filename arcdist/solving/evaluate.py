"""Answers for all puzzles of a source: a queue of tasks over processes, and what it leaves."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from arcdist.config import LoadedConfig
from arcdist.config.schema import section_arguments
from arcdist.data import Collator, Task, TaskSet, build_queries, read_task_sets, tasks_digest
from arcdist.data.queries import Queries
from arcdist.distributed import is_main, rank, world_size
from arcdist.distributed.collectives import broadcast_text, shutdown
from arcdist.engine.platform import start_platform
from arcdist.errors import ArcdistError, ConfigError, DataError, SaveError, headline
from arcdist.evaluation.adapt import Adapting, adapted
from arcdist.evaluation.predict import Candidate, Proposing, propose
from arcdist.files import expanded, replacing
from arcdist.formatting import counted, duration
from arcdist.solving.results import Answers, write_results
from arcdist.solving.trained import Trained, read_trained
from arcdist.tracking import no_log, open_log
from arcdist.tracking.console import ProgressBar, shared_console

_logger = logging.getLogger(__name__)

_OWN_SIDE = 30
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The tasks that are answered, and how they relate to those that were trained on."""

    tasks: TaskSet
    protocol: str
    """`seen`: their demonstrations were trained on; `unseen`: nothing of them was."""


def evaluate(loaded: LoadedConfig) -> None:
    """Answer the puzzles that a command line asks for; all processes call it together.

    Raises:
        ArcdistError: of the kind that says whose mistake it is.
    """
    config = loaded.config
    if len(loaded.arguments) > 1:
        raise ConfigError(f"evaluate.py takes one run, and was given {counted(len(loaded.arguments), 'word')}.")
    path = expanded(loaded.arguments[0])
    with open_log(None) if is_main() else no_log():
        platform = start_platform(config)
        trained = read_trained(path, config, platform.accelerator.device)
        scored = find_scored(loaded, trained)
        solver = Solver.of(trained, loaded, scored.tasks.used)
        named = config.output.dir or str(path / "solve" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        folder = Path(broadcast_text(str(expanded(named).resolve())))
        started = time.monotonic()
        protocol = {
            "run": trained.origin,
            "weights": trained.digest,
            "tasks": tasks_digest(scored.tasks.used),
            "trained_on": f"{trained.config.data.source} ({trained.config.data.split})",
            "trained_tasks": len(trained.tasks),
            "scored": str(scored.tasks.origin),
            "protocol": scored.protocol,
            "solve": section_arguments(config.solve),
            "seed": config.train.seed,
        }
        queue = Queue(folder, solver, scored.tasks.used, protocol)
        queue.run()
        if is_main():
            write_results(folder, scored.tasks, queue.answers(), protocol, time.monotonic() - started)
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
        transductive = sets.validation.origin in sets.joined
        seen = "seen" if sets.validation is sets.training else "transductive" if transductive else "unseen"
        return Scored(tasks=own, protocol=seen)
    wanted = replace(
        data,
        validation_source=None,
        max_side=data.max_side if is_given("data.max_side") else _OWN_SIDE,
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
                f"({', '.join(shared[:5])}): name {asked.origin.source} with --data.allow_overlap to accept it."
            ) from error
        return Scored(tasks=asked, protocol="overlapping" if shared else "unseen")
    if sets.training.origin == asked.origin:
        return Scored(tasks=asked, protocol="seen")
    leaks = replace(sets, validation=asked).check_leaks(data.allow_overlap)
    overlaps = leaks.shared_ids or leaks.shared_contents
    transductive = asked.origin in sets.joined
    return Scored(tasks=asked, protocol="overlapping" if overlaps else "transductive" if transductive else "unseen")


@dataclass(frozen=True, kw_only=True, slots=True)
class Solver:
    """Answers one task after another; what it answers depends on nothing but the task."""

    trained: Trained
    proposing: Proposing
    adapting: Adapting
    tests: Queries | None
    demonstrations: Queries | None
    collator: Collator

    @classmethod
    def of(cls, trained: Trained, loaded: LoadedConfig, tasks: Sequence[Task]) -> "Solver":
        """Prepare the queries of some tasks."""
        solve, seed, augment = loaded.config.solve, loaded.config.train.seed, trained.config.data.augment
        tokenizer = trained.predictor.qwen.tokenizer
        most = loaded.config.data.max_context_pairs, tokenizer.max_tokens

        def queries(kind: Any, needed: bool) -> Queries | None:
            return build_queries(tasks, kind).limited(*most) if needed else None

        return cls(
            trained=trained,
            proposing=Proposing(
                views=solve.views,
                draws=solve.draws,
                steps=solve.steps,
                memory=solve.memory,
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
            demonstrations=queries("train", any(len(task.demonstrations) > 1 for task in tasks)),
            collator=Collator(
                tokenizer,
                task_rows={name: row for row, name in enumerate(trained.tasks)},
                max_grid_size=trained.predictor.agent.size_head.max_grid_size,
            ),
        )

    def answer(self, task: Task) -> list[list[Candidate]]:
        """The candidates for each test pair of a task."""
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
        folder: of the answers.
        solver: answers a task.
        tasks: all of them.
        protocol: what the answers depend on; the folder belongs to it.
    """

    def __init__(self, folder: Path, solver: Solver, tasks: Sequence[Task], protocol: Mapping[str, Any]) -> None:
        self._folder = folder / "tasks"
        self._solver = solver
        self._tasks = tasks
        if is_main():
            with _writable(folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._claim(folder / "protocol.json", protocol)
        broadcast_text("claimed")

    def _claim(self, file: Path, protocol: Mapping[str, Any]) -> None:
        text = json.dumps(protocol, indent=2) + "\n"
        if file.is_file():
            if json.loads(file.read_text(encoding="utf-8")) != json.loads(text):
                raise ConfigError(
                    f"{file.parent} holds answers of another run, other tasks or other settings (protocol.json says "
                    f"which): choose another --output_dir."
                )
            return
        with replacing(file) as partial:
            partial.write_text(text, encoding="utf-8")

    def run(self) -> None:
        """Answer what is left of this process's share, and wait until the others have answered theirs."""
        own = [place for place in self._share() if not self._file(place).exists()]
        done = len(self._tasks) - sum(not self._file(place).exists() for place in range(len(self._tasks)))
        if done and is_main():
            _logger.info("%s answered already: the others follow.", counted(done, "task"))
        costs = {place: self._solver.cost(self._tasks[place]) for place in own}
        # One of middle size first, which tells how long all will take; then the longest, so that none is left over.
        own.sort(key=costs.__getitem__, reverse=True)
        own = own[len(own) // 2 : len(own) // 2 + 1] + own[: len(own) // 2] + own[len(own) // 2 + 1 :]
        console = shared_console() if is_main() else None
        with ProgressBar(len(own), console=console) if console else nullcontext() as progress:
            for number, place in enumerate(own):
                start = time.monotonic()
                self._answer(place)
                seconds = time.monotonic() - start
                if number == 0 and is_main() and len(own) > 1:
                    whole = seconds * sum(costs.values()) / costs[place]
                    _logger.info("%s to answer, about %s.", counted(len(own), "task"), duration(whole))
                if progress is not None:
                    progress.advance(label="answering")
        while not all(self._file(place).exists() for place in range(len(self._tasks))):
            time.sleep(_POLL_SECONDS)

    def answers(self) -> dict[str, Answers]:
        """What was answered, by task."""
        found = {}
        for place, task in enumerate(self._tasks):
            raw = json.loads(self._file(place).read_text(encoding="utf-8"))
            outputs = [
                [
                    Candidate(tuple(map(tuple, each["grid"])), each["origin"], each["view"], each["log_prob"])
                    for each in of_output
                ]
                for of_output in raw["outputs"]
            ]
            found[task.id] = Answers(outputs=outputs, failed=raw["failed"])
        return found

    def _share(self) -> list[int]:
        """The tasks of this process: each in turn goes to the process with least to do so far, the longest first."""
        loads = [0.0] * world_size()
        shares: list[list[int]] = [[] for _ in loads]
        costs = [self._solver.cost(task) for task in self._tasks]
        for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
            least = min(range(len(loads)), key=loads.__getitem__)
            shares[least].append(place)
            loads[least] += costs[place]
        return shares[rank()]

    def _answer(self, place: int) -> None:
        task, failed = self._tasks[place], None
        outputs: list[list[Candidate]] = []
        for is_last in (False, True):
            try:
                outputs = self._solver.answer(task)
                break
            except (ArcdistError, RuntimeError, ValueError) as error:
                _logger.warning("Task %s could not be answered (%s)%s.", task.id, headline(error),
                                "" if is_last else "; it is tried once more")  # fmt: skip
                failed = headline(error)
        else:
            outputs = [[] for _ in task.tests]
        content = {
            "task": task.id,
            "failed": failed if not any(outputs) and task.tests else None,
            "outputs": [[asdict(candidate) for candidate in of_output] for of_output in outputs],
        }
        with _writable(self._folder), replacing(self._file(place)) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")

    def _file(self, place: int) -> Path:
        return self._folder / f"{place:05d}.json"


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{folder} cannot be written ({error.strerror}: {error.filename or folder}): make room there, or choose "
            f"another folder with --output_dir."
        ) from error
