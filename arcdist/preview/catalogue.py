"""The tasks of a configuration: those that a run trains on, those that it scores, and those that it leaves out."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from arcdist.config import DataConfig
from arcdist.data import Origin, Task, read_tasks, select_tasks
from arcdist.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """The tasks of one source and split."""

    origin: Origin
    tasks: tuple[Task, ...]
    """All, by id."""
    used: tuple[Task, ...]
    """Those that `data.max_side` and `data.max_tasks` leave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """What a configuration trains on and what it scores; the same shelf where there is no source for validation."""

    data: DataConfig
    training: Shelf
    validation: Shelf

    @property
    def shelves(self) -> tuple[Shelf, ...]:
        """The different ones."""
        return (self.training,) if self.validation is self.training else (self.training, self.validation)

    def find(self, task_id: str, kind: Literal["train", "test"]) -> tuple[Task, Shelf]:
        """A task and where it lies: for a train query first among the trained ones, else among the scored.

        Raises:
            ConfigError: it is in none; the message names the nearest ids.
        """
        for shelf in self.shelves if kind == "train" else reversed(self.shelves):
            for task in shelf.tasks:
                if task.id == task_id:
                    return task, shelf
        ids = sorted({task.id for shelf in self.shelves for task in shelf.tasks})
        near = get_close_matches(task_id, ids, n=3)
        hint = f"The nearest: {', '.join(near)}." if near else f"Its ids are like {ids[0]}."
        where = " and ".join(str(shelf.origin) for shelf in self.shelves)
        raise ConfigError(
            f"There is no task {task_id!r} in {where}. {hint} Other tasks: --data.source, --data.split, "
            f"--data.validation_source."
        )

    def exclusion(self, task: Task, kind: Literal["train", "test"]) -> str | None:
        """Why a run does not ask a task's queries of a kind, in a sentence; none where it does."""
        shelf = self.training if kind == "train" else self.validation
        verb = "train on" if kind == "train" else "score"
        if _holds(shelf.used, task):
            return None
        if not _holds(shelf.tasks, task):
            return f"A run would not {verb} it: it is not in {shelf.origin}."
        if task.longest_side > self.data.max_side:
            return (
                f"A run would not {verb} it: its longest side is {task.longest_side}, "
                f"data.max_side is {self.data.max_side}."
            )
        return f"A run would not {verb} it: it is not among the first data.max_tasks = {self.data.max_tasks}."


def read_catalogue(data: DataConfig) -> Catalogue:
    """Read the tasks of a configuration.

    Raises:
        DataError: a source cannot be read, one of its tasks is not ARC, or no task is left.
    """
    training = _read(Origin(data.source, data.split), data)
    if data.validation_source is None:
        return Catalogue(data=data, training=training, validation=training)
    validation = _read(Origin(data.validation_source, data.validation_split), data)
    return Catalogue(data=data, training=training, validation=validation)


def _read(origin: Origin, data: DataConfig) -> Shelf:
    tasks = read_tasks(*origin)
    used = select_tasks(tasks, origin.source, data.max_side, data.max_tasks)
    return Shelf(origin=origin, tasks=tuple(tasks), used=tuple(used))


def _holds(tasks: Sequence[Task], task: Task) -> bool:
    return any(held is task for held in tasks)
