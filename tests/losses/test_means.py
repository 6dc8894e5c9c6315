import pytest
import torch

from arcdist.losses import cell_mean, color_shares, query_mean

MASK = torch.tensor([[[True, True], [False, False]], [[False, False], [False, False]]])


def test_cell_mean_counts_valid_cells_only() -> None:
    values = torch.tensor([[[1.0, 2.0], [50.0, float("nan")]], [[7.0, 7.0], [7.0, 7.0]]])
    assert cell_mean(values, MASK).tolist() == [1.5, 0.0]


def test_cell_mean_keeps_trailing_dimensions() -> None:
    values = torch.arange(16.0).reshape(2, 2, 2, 2)
    assert cell_mean(values, MASK).tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_query_mean_is_uniform_or_weighted() -> None:
    values = torch.tensor([1.0, 3.0])
    assert query_mean(values).item() == 2.0
    assert query_mean(values, torch.tensor([0.75, 0.25])).item() == 1.5


def test_color_shares_give_cells_outside_every_grid_no_color() -> None:
    grid = torch.tensor([[[3, 3, 0, -1]]])
    mask = torch.tensor([[[True, True, True, True]]])
    shares = color_shares(grid, mask)[0]
    assert shares.tolist() == pytest.approx([0.25, 0, 0, 0.5, 0, 0, 0, 0, 0, 0])
