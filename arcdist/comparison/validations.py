"""Which queries a run has answered: at its last validation, and at its best one."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from arcdist.tracking.run_record import RunRecord
from arcdist.tracking.validation import Validation

Moment: TypeAlias = Literal["last", "best"]
MOMENTS: tuple[Moment, ...] = ("last", "best")


def exact_at(record: RunRecord, moment: Moment) -> Mapping[str, bool]:
    """Whether each query was answered exactly; empty where there is no such validation.

    The last one is the fair one to judge by: the best one was chosen for this very score, which flatters a run the
    more, the more validations it had to choose from.
    """
    validation = _at(record, moment)
    return {} if validation is None else {name: result.exact for name, result in validation.results.items()}


def _at(record: RunRecord, moment: Moment) -> Validation | None:
    if moment == "last":
        return record.validations[-1] if record.validations else None
    best = record.best.get("epoch")
    return next((validation for validation in record.validations if validation.epoch == best), None)
