"""Answers for all puzzles of a source: which ones, under which protocol, and what is left of them."""

import logging
import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from arcdist.config import LoadedConfig
from arcdist.config.loader import run_of
from arcdist.config.schema import section_arguments
from arcdist.data import Origin, TaskSet, read_asked, read_task_sets, tasks_digest
from arcdist.distributed import is_main
from arcdist.distributed.collectives import broadcast_text, shutdown
from arcdist.engine.platform import start_platform
from arcdist.errors import ArcdistError, ConfigError, DataError
from arcdist.files import expanded
from arcdist.formatting import counted
from arcdist.solving.queue import Queue, claimed, writable
from arcdist.solving.report import write_results
from arcdist.solving.results import Answers
from arcdist.solving.task_solver import TaskSolver
from arcdist.solving.trained import Trained, changed_keys, read_trained
from arcdist.tracking import no_log, open_log

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The tasks that are answered, and how they relate to those that were trained on."""

    tasks: TaskSet
    protocol: str
    """One of `report.PROTOCOLS`."""
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
            solver = TaskSolver.of(trained, loaded, scored.tasks.used)
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
                answers = queue.answers()
                with writable(folder):
                    write_results(folder, scored.tasks, answers, protocol, scored.max_side)
                check_answered(answers)
    shutdown()


def check_answered(answers: Mapping[str, Answers]) -> None:
    """Check that a task was answered: what fails for all is no matter of a task.

    Raises:
        ArcdistError: each has failed.
    """
    failed = [None if any(given.outputs) else given.failed for given in answers.values()]
    if failed and all(failed):
        raise ArcdistError(
            f"None of {counted(len(failed), 'task')} could be answered. The first: {failed[0]} The files are written, "
            f"and hold no answer; results.json says why of each."
        )


def find_scored(loaded: LoadedConfig, trained: Trained) -> Scored:
    """The tasks that a command line asks to answer: the run's own validation tasks unless it names a source.

    Raises:
        DataError: there are none, or they were trained on and nothing accepts it.
    """
    ours, data, is_given = trained.config.data, loaded.config.data, loaded.is_given
    if not (is_given("data.source") or is_given("data.split")):
        sets = read_task_sets(ours)
        # As the run validates them: what it leaves out there is not asked here either.
        used = sets.validation.used
        side = data.max_side if is_given("data.max_side") else ours.max_side
        within = tuple(task for task in used if task.without_answers().longest_side <= side)
        if not within:
            raise DataError(
                f"Each of the run's {len(used)} tasks has a side longer than data.max_side = {side}: raise it."
            )
        most = data.max_tasks if is_given("data.max_tasks") else None
        own = replace(sets.validation, tasks=used, used=within[:most])
        transductive = sets.joins(sets.validation)
        seen = "seen" if sets.validation is sets.training else "transductive" if transductive else "unseen"
        return Scored(tasks=own, protocol=seen, max_side=side)
    wanted = replace(
        data,
        max_side=data.max_side if is_given("data.max_side") else trained.longest_side,
        max_tasks=data.max_tasks if is_given("data.max_tasks") else None,
    )
    asked = read_asked(wanted)
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
