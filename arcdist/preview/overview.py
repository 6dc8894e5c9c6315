"""A data source as a whole: what a run would train on and score, and what the leak guard says of the two."""

from dataclasses import dataclass

from arcdist.data import LeakReport, build_queries, check_leaks
from arcdist.errors import DataError
from arcdist.preview.catalogue import Catalogue
from arcdist.preview.statistics import QueryLengths, TaskStatistics, count_tasks, count_tokens


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overview:
    """All numbers of a configuration's data."""

    sources: dict[str, TaskStatistics]
    """By source and split: the one that is trained on, then the one that is scored, where that is another."""
    training: QueryLengths
    """The queries that are trained on: demonstrations held out."""
    validation: QueryLengths
    """The queries that are scored: test pairs."""
    scored: int
    """Those of them whose output is known."""
    leaks: LeakReport | DataError
    """What the leak guard found, or its refusal."""


def survey(catalogue: Catalogue) -> Overview:
    """Count a configuration's data.

    Raises:
        DataError: there is nothing to train on, or nothing to ask in validation.
        PlatformError: the cache of prepared queries cannot be written.
    """
    training, validation = catalogue.training, catalogue.validation
    leaks: LeakReport | DataError
    try:
        leaks = check_leaks(
            training.used, validation.used, training.origin, validation.origin, catalogue.data.allow_overlap
        )
    except DataError as error:
        leaks = error
    return Overview(
        sources={str(shelf.origin): count_tasks(shelf, catalogue.data.max_side) for shelf in catalogue.shelves},
        training=count_tokens(build_queries(training.used, "train")),
        validation=count_tokens(build_queries(validation.used, "test")),
        scored=sum(pair.output is not None for task in validation.used for pair in task.tests),
        leaks=leaks,
    )
