"""A run as rows, for what keeps one a training step: that of an epoch's last step has the epoch's record in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arcdist.tracking.validation import Validation

_OF_EPOCHS = ("val/", "floor/")
_PREFIX = "epoch/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What is kept of one training step."""

    step: int
    numbers: Mapping[str, Any]
    ends_epoch: bool = False
    """Whether the record of an epoch is in it."""
    validation: Validation | None = None


def make_row(
    number: int,
    step: Mapping[str, Any] | None,
    epoch: Mapping[str, Any] | None = None,
    validation: Validation | None = None,
) -> Row:
    """The row of training step `number`, from its record and that of the epoch that ends with it, where there is one.

    An epoch's `val/*` and `floor/*` keep their names, its other numbers get the prefix `epoch/`.
    """
    numbers = dict(step or {})
    for name, value in (epoch or {}).items():
        numbers[name if name == "epoch" or name.startswith(_OF_EPOCHS) else _PREFIX + name] = value
    return Row(step=number, numbers=numbers, ends_epoch=epoch is not None, validation=validation)


def rows_of(
    steps: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]], validations: Sequence[Validation]
) -> list[Row]:
    """The rows of the records in a run folder, by step.

    The records of epochs say with which step they ended, but for those of older versions, which are left out.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for record in steps:
        # A run that ends over its health notes its flags in a line of their own.
        by_step[record["step"]] = {**by_step.get(record["step"], {}), **record}
    validated = {validation.epoch: validation for validation in validations}
    ends = {record["step"]: record for record in epochs if "step" in record}
    return [
        make_row(step, by_step.get(step), ends.get(step), validated.get(ends[step]["epoch"]) if step in ends else None)
        for step in sorted(by_step.keys() | ends)
    ]


def records_of(
    numbers: Mapping[str, Any], whole: frozenset[str]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The records of the step and of the epoch that a row was made of; none for what is not in it.

    Args:
        numbers: of the row, as W&B keeps them, with what is no number left out here.
        whole: names of the numbers that are whole; the others are floats.
    """
    typed = {name: _typed(value, name in whole) for name, value in numbers.items() if not name.startswith("_")}
    of_epoch = dict(_unprefixed(typed))
    of_step = {
        name: value
        for name, value in typed.items()
        if not name.startswith((*_OF_EPOCHS, _PREFIX)) and not isinstance(value, Mapping)  # tables and pictures
    }
    has_step = typed.get("step") is not None
    has_epoch = any(value is not None for value in of_epoch.values())
    return of_step if has_step else None, {"epoch": typed["epoch"], **of_epoch} if has_epoch else None


def _unprefixed(typed: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in typed.items():
        if name.startswith(_PREFIX):
            yield name.removeprefix(_PREFIX), value
        elif name.startswith(_OF_EPOCHS):
            yield name, value


def _typed(value: Any, whole: bool) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_number and not whole else value
