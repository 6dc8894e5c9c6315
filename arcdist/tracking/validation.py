"""What a validation found, query by query: `validation/epoch_00003.json` in a run folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from arcdist.errors import DataError
from arcdist.tracking.atomic import replacing

FOLDER = "validation"

Rows: TypeAlias = tuple[tuple[int, ...], ...]
"""A grid of colours 0 to 9, row by row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryResult:
    """How well a query was answered."""

    exact: bool
    """Size and every cell are right."""
    cell: float
    """Share of the target's cells that are right."""
    confidence: float
    """Geometric mean of the probabilities of the answer's cells, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownQuery:
    """The grids of a query that is shown whole."""

    id: str
    input: Rows
    target: Rows
    steps: tuple[Rows, ...]
    """The answer as it stands after each planning step; the size is that of the last."""
    prediction: Rows
    """The answer that is scored: after the last step, the solver's memory weighed in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The validation of one epoch."""

    epoch: int
    """Counted from 0."""
    step: int
    """Steps of the run before it."""
    results: Mapping[str, QueryResult]
    """By query id, `<task id>:test:<pair index>`, in the order of the ids."""
    shown: tuple[ShownQuery, ...]
    """The same queries in each epoch, and in each run on the same data."""


def task_of(query: str) -> str:
    """The task of a query, from `<task id>:test:<pair index>`."""
    return query.rsplit(":", 2)[0]


def validation_path(folder: Path, epoch: int) -> Path:
    """Where the validation of an epoch lies in a run folder."""
    return folder / FOLDER / f"epoch_{epoch:05d}.json"


def validation_paths(folder: Path) -> list[Path]:
    """The validations in a run folder, by epoch."""
    return sorted((folder / FOLDER).glob("epoch_*.json"))


def write_validation(folder: Path, validation: Validation) -> None:
    """Write the validation of an epoch into a run folder, in place of an earlier one of that epoch."""
    path = validation_path(folder, validation.epoch)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(asdict(validation), separators=(",", ":")) + "\n", encoding="utf-8")


def read_validations(folder: Path) -> tuple[Validation, ...]:
    """The validations of a run folder, by epoch.

    Raises:
        DataError: a file is broken.
    """
    return tuple(_read(path) for path in validation_paths(folder))


def parse_validation(content: Mapping[str, Any]) -> Validation:
    """A validation from JSON.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    return Validation(
        epoch=int(content["epoch"]),
        step=int(content["step"]),
        results={str(name): QueryResult(**result) for name, result in content["results"].items()},
        shown=tuple(
            ShownQuery(
                id=query["id"],
                input=_rows(query["input"]),
                target=_rows(query["target"]),
                steps=tuple(map(_rows, query["steps"])),
                prediction=_rows(query["prediction"]),
            )
            for query in content["shown"]
        ),
    )


def _read(path: Path) -> Validation:
    try:
        return parse_validation(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): see who may read there.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no validation ({error!r}): move it away; the rest is read without it.") from error


def _rows(grid: Any) -> Rows:
    return tuple(tuple(int(color) for color in row) for row in grid)
