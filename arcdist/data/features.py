"""What a transformation does to a grid, in 15 numbers, and what a query looks like, in 32."""

import numpy as np
from jaxtyping import Bool, Float64, Int, Int8

from arcdist.data.tasks import MAX_SIDE, NUM_COLORS

# N grids or pairs, H W canvas.

FEATURE_NAMES = (
    "size_change_ratio",
    "size_preserved",
    "pixel_change_ratio",
    "color_preservation",
    "spatial_correlation",
    "symmetry_change",
    "density_change",
    "colors_added",
    "colors_removed",
    "input_color_count",
    "output_color_count",
    "input_height",
    "input_width",
    "output_height",
    "output_width",
)
"""The transformation features, in the order of the vector."""


def pair_features(
    inputs: Int8[np.ndarray, "N H W"], outputs: Int8[np.ndarray, "N H W"], sizes: Int[np.ndarray, "N 2 2"]
) -> Float64[np.ndarray, "N 15"]:
    """Describe the transformation of each pair, independently of the canvas and of the other pairs.

    If sizes differ, cells are compared on the overlap, top left. Foreground is every colour but 0.

    | feature | value | range |
    |---|---|---|
    | size_change_ratio | output area / input area, clipped | [0, 4] |
    | size_preserved | 1 if the sizes are equal | 0, 1 |
    | pixel_change_ratio | share of overlapping cells that differ | [0, 1] |
    | color_preservation | share of the input's colours that the output has | [0, 1] |
    | spatial_correlation | Pearson correlation of the foregrounds on the overlap, 0 if one is constant | [-1, 1] |
    | symmetry_change | symmetry of the output − of the input; see `_symmetry` | [-1, 1] |
    | density_change | foreground share of the output − of the input | [-1, 1] |
    | colors_added, colors_removed | colours only in the output, only in the input, / 10 | [0, 1] |
    | input_color_count, output_color_count | colours / 10 | [0, 1] |
    | input_height … output_width | side / 30 | [0, 1] |

    Args:
        inputs: colours, `OUTSIDE` beyond each grid.
        outputs: likewise.
        sizes: (input, output) × (height, width).
    """
    areas = sizes.prod(axis=2)
    shares_in, shares_out = color_shares(inputs), color_shares(outputs)
    has_in, has_out = shares_in > 0, shares_out > 0
    num_in, num_out = has_in.sum(axis=1), has_out.sum(axis=1)
    num_kept = (has_in & has_out).sum(axis=1)
    overlap = (inputs >= 0) & (outputs >= 0)
    features = (
        np.minimum(areas[:, 1] / areas[:, 0], 4.0),
        (sizes[:, 0] == sizes[:, 1]).all(axis=1),
        _count((inputs != outputs) & overlap) / _count(overlap),
        num_kept / num_in,
        _correlation((inputs > 0) & overlap, (outputs > 0) & overlap, _count(overlap)),
        _symmetry(outputs, sizes[:, 1]) - _symmetry(inputs, sizes[:, 0]),
        shares_in[:, 0] - shares_out[:, 0],  # of the background, hence input − output
        (num_out - num_kept) / NUM_COLORS,
        (num_in - num_kept) / NUM_COLORS,
        num_in / NUM_COLORS,
        num_out / NUM_COLORS,
        *(sizes.reshape(-1, 4) / MAX_SIDE).T,
    )
    return np.stack(features, axis=1, dtype=np.float64)


def color_shares(grids: Int8[np.ndarray, "N H W"]) -> Float64[np.ndarray, "N 10"]:
    """Give the share of each colour in each grid; the shares of a grid add up to 1."""
    slots = NUM_COLORS + 1  # the last one is that of the cells outside
    slot = np.where(grids >= 0, grids, NUM_COLORS) + slots * np.arange(len(grids))[:, None, None]
    counts = np.bincount(slot.ravel(), minlength=slots * len(grids)).reshape(-1, slots)[:, :NUM_COLORS]
    shares: Float64[np.ndarray, "N 10"] = counts / counts.sum(axis=1, keepdims=True)
    return shares


def _count(cells: Bool[np.ndarray, "N H W"]) -> Int[np.ndarray, " N"]:
    counts: Int[np.ndarray, " N"] = cells.sum(axis=(1, 2))
    return counts


def _correlation(
    first: Bool[np.ndarray, "N H W"], second: Bool[np.ndarray, "N H W"], num_cells: Int[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    # The Pearson correlation of two 0/1 variables, from counts: exact, so the canvas cannot change a bit of it.
    ones_first, ones_second = _count(first), _count(second)
    covariance = num_cells * _count(first & second) - ones_first * ones_second
    spread = ones_first * (num_cells - ones_first) * ones_second * (num_cells - ones_second)
    correlation = np.zeros(len(spread))
    np.divide(covariance, np.sqrt(spread), out=correlation, where=spread > 0)
    return correlation


def _symmetry(grids: Int8[np.ndarray, "N H W"], sizes: Int[np.ndarray, "N 2"]) -> Float64[np.ndarray, " N"]:
    """Share of cells equal to their mirror image, averaged over the two mirror axes."""
    mirrored = _count_mirrored(grids, sizes[:, 0], axis=1) + _count_mirrored(grids, sizes[:, 1], axis=2)
    symmetry: Float64[np.ndarray, " N"] = mirrored / (2 * sizes.prod(axis=1))
    return symmetry


def _count_mirrored(grids: Int8[np.ndarray, "N H W"], sides: Int[np.ndarray, " N"], axis: int) -> Int[np.ndarray, " N"]:
    mirror = np.maximum(sides[:, None] - 1 - np.arange(grids.shape[axis]), 0)
    image = np.take_along_axis(grids, np.expand_dims(mirror, 3 - axis), axis=axis)
    return _count((grids == image) & (grids >= 0))
