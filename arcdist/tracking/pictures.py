"""A query as a small picture for W&B and TensorBoard, quickly drawn and small as a file."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from arcdist.tracking.grids import ARC_COLORS, on_one_canvas
from arcdist.tracking.metrics import ShownQuery
from arcdist.tracking.plots import VERMILION

_SIDE = 8
"""Pixels of a cell's side, with the line beside it."""
_BETWEEN = 12
"""Pixels between the grids."""
_LINE, _RIGHT, _WRONG, _PAPER = 10, 11, 12, 13
_PALETTE = bytes.fromhex("".join((*ARC_COLORS, "#555555", "#EEEEEE", VERMILION, "#FFFFFF")).replace("#", ""))


def query_picture(query: ShownQuery) -> Image.Image:
    """A query in a row: input, the answer after each planning step, scored answer, target, difference.

    In the difference right cells are pale and wrong ones vermilion, also those that only one of the two grids has.
    """
    grids = [np.array(grid, dtype=np.uint8) for grid in (query.input, *query.steps, query.prediction, query.target)]
    layers = on_one_canvas(*grids[-2:])
    difference = np.where(layers[0] == layers[1], np.uint8(_RIGHT), np.uint8(_WRONG))
    difference[(layers < 0).all(axis=0)] = _PAPER  # a cell of neither grid
    drawn = [_with_lines(grid) for grid in (*grids, difference)]
    height = max(map(len, drawn))
    padded = [np.pad(grid, ((0, height - len(grid)), (0, _BETWEEN)), constant_values=_PAPER) for grid in drawn]
    pixels = np.concatenate(padded, axis=1)[:, :-_BETWEEN]
    # With a palette the file is a third of the size, and made in a third of the time.
    picture = Image.frombytes("P", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    picture.putpalette(_PALETTE)
    return picture


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="png")
    return content.getvalue()


def _with_lines(grid: UInt8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "height width"]:
    pixels = np.full((grid.shape[0] * _SIDE + 1, grid.shape[1] * _SIDE + 1), _LINE, dtype=np.uint8)
    pixels[1:, 1:] = grid.repeat(_SIDE, axis=0).repeat(_SIDE, axis=1)
    pixels[::_SIDE] = pixels[:, ::_SIDE] = _LINE
    return pixels
