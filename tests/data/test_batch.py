"""Batches: canvases, working areas, and the way to a device."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist.data.batch import OUTSIDE, QueryBatch, fit_canvas, stack_grids, working_area
from arcdist.data.collate import Collator
from arcdist.data.queries import Query
from arcdist.data.tasks import Pair
from arcdist.data.text import embedded_tokenizer


def grid(height, width):
    return np.zeros((height, width), dtype=np.uint8)


@pytest.mark.parametrize(
    ("context", "query", "area"),
    [
        ([((3, 3), (3, 3))], (5, 2), (5, 3)),  # the query is higher, the context wider
        ([((3, 3), (9, 9))], (4, 2), (12, 9)),  # 4 x 3; 2 x 3 is less than the context's 9
        ([((3, 4), (2, 5))], (4, 9), (4, 12)),  # 9 x 5 / 4 = 11.25, rounded up
        ([((2, 2), (2, 2)), ((2, 2), (4, 2))], (5, 5), (10, 5)),  # the largest ratio counts
        ([((3, 3), (9, 9))], (11, 30), (30, 30)),
    ],
)
def test_working_area_by_hand(context, query, area):
    pairs = [Pair(grid(*before), grid(*after)) for before, after in context]
    assert working_area(pairs, grid(*query)) == area


def test_working_area_is_capped():
    assert working_area([Pair(grid(3, 3), grid(9, 9))], grid(8, 8), max_grid_size=10) == (10, 10)


def test_grids_are_laid_top_left():
    stack = stack_grids([grid(1, 2) + np.uint8(3), grid(2, 1)], 2, 3)
    x = OUTSIDE
    assert stack.tolist() == [[[3, 3, x], [x, x, x]], [[0, x, x], [0, x, x]]]


def test_fit_canvas_by_hand():
    x = OUTSIDE
    grid = torch.tensor([[[1, 2, 3], [4, 5, x]]])
    assert fit_canvas(grid, 1, 2).tolist() == [[[1, 2]]]
    assert fit_canvas(grid, 3, 2).tolist() == [[[1, 2], [4, 5], [x, x]]]
    assert fit_canvas(grid, 2, 4).tolist() == [[[1, 2, 3, x], [4, 5, x, x]]]
    assert torch.equal(fit_canvas(grid, 2, 3), grid)


@given(*[st.integers(1, 6)] * 4)
def test_fit_canvas_keeps_what_both_canvases_have(height, width, new_height, new_width):
    grid = torch.arange(height * width).reshape(1, height, width)
    fitted = fit_canvas(grid, new_height, new_width)
    assert fitted.shape == (1, new_height, new_width)
    shared = (slice(None), slice(min(height, new_height)), slice(min(width, new_width)))
    assert torch.equal(fitted[shared], grid[shared])
    assert (fitted == OUTSIDE).sum() == fitted.numel() - fitted[shared].numel()


def batch():
    query = Query("a:train:0", "a", (Pair(grid(3, 3), grid(2, 2)),), grid(3, 4), grid(2, 3))
    return Collator(embedded_tokenizer(), task_rows={"a": 0})([query])


def test_a_batch_is_copied_to_a_device_whole(tensors_of):
    one = batch()
    copied = one.to(torch.device("meta"))
    assert isinstance(copied, QueryBatch)
    assert copied.ids == one.ids
    before, after = tensors_of(one), tensors_of(copied)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in before.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in after.items()
    }
    assert {tensor.device.type for tensor in after.values()} == {"meta"}


def test_only_pinned_tensors_are_copied_without_waiting(tensors_of, monkeypatch):
    copies = []
    to = torch.Tensor.to

    def record(tensor, device, *, non_blocking):
        copies.append(non_blocking)
        return to(tensor, device)

    one = batch()
    monkeypatch.setattr(torch.Tensor, "to", record)
    one.to(torch.device("cpu"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    pinned = one.pin_memory()
    pinned.to(torch.device("cpu"))
    count = len(tensors_of(one))
    assert copies == [False] * count + [True] * count
    assert all(tensor.data_ptr() != tensors_of(one)[name].data_ptr() for name, tensor in tensors_of(pinned).items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory is CUDA's")
def test_pinned_batches_reach_a_gpu_whole(tensors_of):
    one = batch()
    pinned = one.pin_memory()
    assert all(tensor.is_pinned() for tensor in tensors_of(pinned).values())
    copied = tensors_of(pinned.to(torch.device("cuda")))
    assert all(torch.equal(copied[name].cpu(), tensor) for name, tensor in tensors_of(one).items())
