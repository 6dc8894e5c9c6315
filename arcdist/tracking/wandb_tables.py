"""The tables that a validation becomes in W&B, and a validation made of them again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeAlias

from PIL import Image

from arcdist.tracking.metrics import QueryResult, Validation, parse_validation
from arcdist.tracking.rows import difference_of, picture_of

Table: TypeAlias = tuple[list[str | int], list[list[Any]]]
"""Names of the columns, and the rows."""

_QUERY = ("id", "exact", "cell", "confidence")
_GRIDS = "grids"
"""The column of the grids as JSON, which the pictures are drawn from."""


def query_table(validation: Validation) -> Table:
    """How well each query was answered."""
    rows = [[name, *_values(result)] for name, result in validation.results.items()]
    return list(_QUERY), rows


def shown_table(validation: Validation, wrap: Callable[[Image.Image], Any]) -> Table:
    """The shown queries; `wrap` makes of a picture what a cell may hold."""
    count = max((len(query.steps) for query in validation.shown), default=0)
    columns = ["id", "input", *(f"step {step}" for step in range(1, count + 1)), "answer", "target", "difference"]
    rows = []
    for query in validation.shown:
        result = validation.results.get(query.id)
        steps = [wrap(picture_of(grid)) for grid in query.steps]
        rows.append(
            [
                query.id,
                wrap(picture_of(query.input)),
                *steps,
                *([None] * (count - len(steps))),
                wrap(picture_of(query.prediction)),
                wrap(picture_of(query.target)),
                wrap(difference_of(query.prediction, query.target)),
                *(_values(result) if result else [None] * len(_QUERY[1:])),
                json.dumps({key: value for key, value in asdict(query).items() if key != "id"}, separators=(",", ":")),
            ]
        )
    return [*columns, *_QUERY[1:], _GRIDS], rows


def _values(result: QueryResult) -> list[Any]:
    return [getattr(result, key) for key in _QUERY[1:]]


def validation_of(epoch: int, step: int, queries: Mapping[str, Any], shown: Mapping[str, Any] | None) -> Validation:
    """The validation that tables were made of, from their JSON; without shown queries where that table is missing.

    Raises:
        KeyError, TypeError, ValueError: they are none of a validation.
    """
    content = {"columns": [], "data": []} if shown is None else shown
    grids = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    results = [dict(zip(queries["columns"], row, strict=True)) for row in queries["data"]]
    return parse_validation(
        {
            "epoch": epoch,
            "step": step,
            "results": {result["id"]: {key: result[key] for key in _QUERY[1:]} for result in results},
            "shown": [{"id": row["id"], **json.loads(row[_GRIDS])} for row in grids],
        }
    )
