"""Which tasks a run finds hard, and which queries it has newly solved or lost again."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcdist.tracking.validation import QueryResult, Validation, task_of


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """How a task's queries were answered in the last validation."""

    task: str
    queries: int
    exact: int
    cell: float
    """Mean share of right cells."""
    confidence: float
    """Mean confidence."""
    ever_exact: bool
    """Whether one of its queries was exact in any validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a validation solves and an earlier one did not, and the other way round: query ids in their order."""

    solved: tuple[str, ...]
    lost: tuple[str, ...]


def task_results(validations: Sequence[Validation]) -> list[TaskResult]:
    """The tasks of the last of at least one validation, the hardest first: the fewest right cells, then by id."""
    tasks: Mapping[str, list[QueryResult]] = defaultdict(list)
    for query, result in validations[-1].results.items():
        tasks[task_of(query)].append(result)
    ever = {task_of(query) for validation in validations for query in exact_queries(validation)}
    found = [
        TaskResult(
            task=task,
            queries=len(results),
            exact=sum(result.exact for result in results),
            cell=sum(result.cell for result in results) / len(results),
            confidence=sum(result.confidence for result in results) / len(results),
            ever_exact=task in ever,
        )
        for task, results in tasks.items()
    ]
    return sorted(found, key=lambda result: (result.cell, result.task))


def change(before: Validation, after: Validation) -> Change:
    """What `after` solves and `before` did not, and what it lost."""
    solved, lost = exact_queries(after), exact_queries(before)
    return Change(
        solved=tuple(query for query in solved if query not in lost),
        lost=tuple(query for query in lost if query not in solved),
    )


def once_solved(validations: Sequence[Validation]) -> tuple[str, ...]:
    """Queries that some validation solves and the last one does not."""
    last = exact_queries(validations[-1])
    ever = {query for validation in validations for query in exact_queries(validation)}
    return tuple(sorted(ever - last.keys()))


def exact_queries(validation: Validation) -> Mapping[str, QueryResult]:
    """The queries that are exact."""
    return {query: result for query, result in validation.results.items() if result.exact}
