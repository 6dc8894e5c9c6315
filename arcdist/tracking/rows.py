"""A run as rows, for what keeps one a training step: that of an epoch's last step has the epoch's record in it."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from arcdist.tracking.grids import ARC_COLORS, on_one_canvas
from arcdist.tracking.metrics import Rows, ShownQuery, Validation
from arcdist.tracking.plots import VERMILION

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


_SIDE = 8
"""Pixels of a cell's side, with the line beside it."""
_BETWEEN = 12
"""Pixels between pictures in a row."""
_LINE, _RIGHT, _WRONG, _PAPER = 10, 11, 12, 13
_PALETTE = (*ARC_COLORS, "#555555", "#EEEEEE", VERMILION, "#FFFFFF")
_RGB = bytes(int(color[place : place + 2], 16) for color in _PALETTE for place in (1, 3, 5))


def picture_of(grid: Rows) -> Image.Image:
    """A grid in ARC's colours, with thin lines between the cells."""
    return _picture(_with_lines(np.array(grid, dtype=np.uint8)))


def difference_of(answer: Rows, target: Rows) -> Image.Image:
    """Which cells of an answer are wrong, on a canvas that holds both: what only one of them has is wrong as well."""
    return _picture(_with_lines(_difference(answer, target)))


def strip_of(query: ShownQuery) -> Image.Image:
    """All of a query in a row: input, each planning step, answer, target, difference."""
    grids = [np.array(grid, dtype=np.uint8) for grid in (query.input, *query.steps, query.prediction, query.target)]
    pixels = [_with_lines(grid) for grid in (*grids, _difference(query.prediction, query.target))]
    height = max(len(picture) for picture in pixels)
    parts = [np.pad(picture, ((0, height - len(picture)), (0, _BETWEEN)), constant_values=_PAPER) for picture in pixels]
    return _picture(np.concatenate(parts, axis=1)[:, :-_BETWEEN])


def png_of(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="png")
    return content.getvalue()


def _difference(answer: Rows, target: Rows) -> UInt8[np.ndarray, "rows columns"]:
    layers = on_one_canvas(np.array(answer), np.array(target))
    judged = np.where(layers[0] == layers[1], np.uint8(_RIGHT), np.uint8(_WRONG))
    judged[(layers < 0).all(axis=0)] = _PAPER  # beside both
    return judged


def _with_lines(grid: UInt8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "height width"]:
    pixels = np.full((grid.shape[0] * _SIDE + 1, grid.shape[1] * _SIDE + 1), _LINE, dtype=np.uint8)
    pixels[1:, 1:] = grid.repeat(_SIDE, axis=0).repeat(_SIDE, axis=1)
    pixels[::_SIDE] = pixels[:, ::_SIDE] = _LINE
    return pixels


def _picture(pixels: UInt8[np.ndarray, "height width"]) -> Image.Image:
    # With a palette the file is a third of the size, and made in a third of the time.
    picture = Image.frombytes("P", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    picture.putpalette(_RGB)
    return picture
