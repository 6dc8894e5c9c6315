"""One puzzle answered and shown: both attempts, how sure they are, and the planning steps on the way."""

from collections.abc import Iterator, Sequence

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.text import Text

from arcdist.config import LoadedConfig
from arcdist.config.schema import section_arguments
from arcdist.data import Pair, Task, read_task_sets, read_tasks
from arcdist.distributed import is_main
from arcdist.distributed.collectives import shutdown
from arcdist.engine.platform import start_platform
from arcdist.errors import ConfigError, DataError
from arcdist.evaluation.predict import Candidate, GridTuple, grid_tuple
from arcdist.evaluation.vote import ATTEMPTS, Ranked, vote
from arcdist.files import expanded
from arcdist.formatting import counted
from arcdist.solving.report import not_held_out
from arcdist.solving.results import WEIGHTS
from arcdist.solving.task_solver import TaskSolver
from arcdist.solving.trained import Trained, read_trained
from arcdist.tracking import no_log, open_log
from arcdist.tracking.grids import grid_text, has_colors, verdict

_BETWEEN = 3


def solve(loaded: LoadedConfig) -> None:
    """Answer the puzzles that a command line names, and print them.

    Raises:
        ConfigError: no puzzle is named, or one is neither a file nor a task of the run.
        DataError: a file holds no task, or one with a grid that is too large.
    """
    run, *names = loaded.arguments
    if not names:
        raise ConfigError("No puzzle is named: after the run, give a file of task JSON or a task's id.")
    with open_log(None) if is_main() else no_log():
        platform = start_platform(loaded.config)
        trained = read_trained(expanded(run), loaded.config, platform.accelerator.device)
        tasks = [task for name in names for task in _find(name, trained)]
        console = Console(highlight=False, markup=False, emoji=False)
        for task in tasks:
            # Each by itself: puzzles of several files may have the same id.
            solver = TaskSolver.of(trained, loaded, [task])
            answers = solver.answer(task)
            if not is_main():
                continue
            for part in _shown(task, answers, loaded.config.solve.views, console):
                console.print(part)
            if problem := solver.too_long.get(task.id):
                console.print(f"{problem}\n")
            if why := solver.not_held_out(task):
                console.print(f"It {not_held_out(section_arguments(loaded.config.solve))}: it has {why}.\n")
    shutdown()


def _find(name: str, trained: Trained) -> Sequence[Task]:
    """The tasks in a file, or the one of the run's own that has this id."""
    if not name.strip():
        raise ConfigError("A puzzle has an empty name: give a file of task JSON or a task's id.")
    path, side = expanded(name), trained.longest_side
    if path.is_file():
        tasks = read_tasks(str(path))
        for task in tasks:
            if (longest := task.without_answers().longest_side) > side:
                raise DataError(
                    f"{task.source}: task {task.id} has a side of {longest}, and {side} is the longest that "
                    f"this run's agent can be given: cut its grids, or leave it out."
                )
        return tasks
    if path.is_dir():
        raise ConfigError(
            f"{name} is a folder: give files in it, or answer all of them with evaluate.py and --data.source {name}."
        )
    sets = read_task_sets(trained.config.data)
    # Of a set that has joined, the run has no test pairs; its source has them.
    of_sources = {tasks.origin: tasks.tasks for tasks in sets.distinct}
    of_sources |= {tasks.origin: read_tasks(*tasks.origin) for tasks in sets.joined if tasks.origin not in of_sources}
    found = [
        task
        for tasks in of_sources.values()
        for task in tasks
        if task.id == name and task.without_answers().longest_side <= side
    ]
    if not found:
        origins = " and ".join(map(str, of_sources))
        raise ConfigError(
            f"{name} does not exist as a file, and is no task of {origins}: give a file of task JSON, or such an id."
        )
    return found[:1]


def _shown(
    task: Task, answers: Sequence[Sequence[Candidate]], views: int, console: Console
) -> Iterator[RenderableType]:
    pairs = f"{counted(len(task.demonstrations), 'demonstration')}, {counted(len(task.tests), 'test pair')}"
    yield Text.assemble((task.id, "bold"), f": {pairs}")
    if not task.tests:
        yield "It has no test pair: there is nothing to answer."
    for index, (pair, candidates) in enumerate(zip(task.tests, answers, strict=True)):
        ranked = vote(candidates, WEIGHTS)
        yield ""
        yield Text(f"test {index}", style="bold")
        yield _row(_panels(pair, ranked, views, candidates), console)
        if not candidates:
            yield "no answer: too long for Qwen"
        if steps := [each.grid for each in candidates if each.origin == "steps" and each.view == 0]:
            yield ""
            yield "how the agent arrives at its answer, as it sees the puzzle unchanged:"
            last = next(each.grid for each in candidates if each.origin == "agent" and each.view == 0)
            planned = [*steps[::-1], last]
            yield _row([(f"step {number}", grid) for number, grid in enumerate(planned, start=1)], console)
    yield ""


def _panels(
    pair: Pair, ranked: Sequence[Ranked], views: int, candidates: Sequence[Candidate]
) -> list[tuple[str, GridTuple]]:
    """The input, the attempts with how many views agree, and the target if it is known."""
    panels = [("input", grid_tuple(pair.input))]
    for number, each in enumerate(ranked[:ATTEMPTS], start=1):
        agree = len({c.view for c in candidates if c.grid == each.grid and c.origin == "agent"})
        how = f"{agree} of {counted(views, 'view')}" if agree else f"by {' and '.join(each.origins)} only"
        said = f"attempt {number}\n{how}"
        if pair.output is not None:
            said += f"\n{verdict(np.array(each.grid), pair.output)}"
        panels.append((said, each.grid))
    if pair.output is not None:
        panels.append(("target", grid_tuple(pair.output)))
    return panels


def _row(panels: Sequence[tuple[str, GridTuple]], console: Console) -> Columns:
    colored = has_colors(console)
    lines = max(caption.count("\n") for caption, _ in panels)
    return Columns(
        [
            Group(
                Text(caption + "\n" * (lines - caption.count("\n")), style="dim"),
                grid_text(np.array(grid), wide=len(grid[0]) <= 15, colored=colored),
            )
            for caption, grid in panels
        ],
        padding=(0, _BETWEEN, 0, 0),
    )
