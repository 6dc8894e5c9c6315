"""The guard against scoring what was trained on."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from arcdist.data.sources import Origin
from arcdist.data.tasks import Task
from arcdist.errors import DataError

_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakReport:
    """How much of what is scored was also trained on."""

    shared_ids: int
    """Scored tasks whose id is among the trained ones; 0 where both are the same split of the same source."""
    shared_contents: int
    """Scored tasks that have an (input, output) pair in common with a trained one, whatever their ids; 0 likewise."""
    examples: tuple[str, ...]
    """Ids of up to five of these scored tasks."""
    repeated_test_pairs: int
    """Test pairs of scored tasks that are identical to a demonstration of the same task."""


def check_leaks(
    trained: Sequence[Task],
    scored: Sequence[Task],
    trained_origin: Origin,
    scored_origin: Origin,
    allow_overlap: Collection[str] = (),
) -> LeakReport:
    """Compare trained and scored tasks by id and by the contents of their pairs.

    One pair in common makes two tasks the same, so a renamed, reordered or partial copy is found. Training and scoring
    the same split of the same source is the normal case (demonstrations against test pairs) and not compared.
    `allow_overlap` holds the scored sources that may overlap.

    Raises:
        DataError: tasks are shared and `allow_overlap` does not name the scored source.
    """
    by_id: set[str] = set()
    by_content: set[str] = set()
    if trained_origin != scored_origin:
        ids = {task.id for task in trained}
        contents = {digest for task in trained for digest in _contents(task)}
        by_id = {task.id for task in scored if task.id in ids}
        by_content = {task.id for task in scored if not contents.isdisjoint(_contents(task))}
    shared = sorted(by_id | by_content)
    examples = tuple(shared[:_EXAMPLES])
    if shared and scored_origin.source not in allow_overlap:
        raise DataError(
            f"{len(shared)} of the {len(scored)} tasks to score, {scored_origin}, are trained on with {trained_origin} "
            f"({len(by_id)} by id, {len(by_content)} by content; {', '.join(examples)}"
            f"{', …' if len(shared) > len(examples) else ''}): score tasks that are not trained on, or give "
            f"--data.allow_overlap {shlex.quote(scored_origin.source)} to accept it."
        )
    return LeakReport(
        shared_ids=len(by_id),
        shared_contents=len(by_content),
        examples=examples,
        repeated_test_pairs=sum(_repeated_test_pairs(task) for task in scored),
    )


def _contents(task: Task) -> set[bytes]:
    return {pair.digest() for pair in task.demonstrations + task.tests if pair.output is not None}


def _repeated_test_pairs(task: Task) -> int:
    demonstrated = {pair.digest() for pair in task.demonstrations}
    return sum(pair.digest() in demonstrated for pair in task.tests)
