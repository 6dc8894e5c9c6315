"""With one process nothing is sent, and every sum, row and text is its own. Launched tests show several."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist.distributed.exchange import (
    add_up,
    add_up_in_place,
    bytes_from_first,
    gather_rows,
    hear_from_first,
    several_processes,
    take_over_from_first,
)

shapes = st.lists(st.lists(st.integers(1, 3), max_size=2).map(tuple), min_size=1, max_size=4)


def test_there_is_nobody_to_talk_to():
    assert not several_processes()


@given(shapes)
def test_sums_are_given_back_by_name_and_in_their_shapes(shapes):
    named = {f"name {index}": torch.rand(shape) for index, shape in enumerate(shapes)}
    sums = add_up(named)
    assert list(sums) == list(named)
    for name, value in named.items():
        assert torch.equal(sums[name], value)


def test_sums_are_float32_copies_without_a_graph():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    sums = add_up(
        {
            "a": value * 2,
            "b": torch.tensor(True),
            "c": torch.tensor([3], dtype=torch.int64),
            "d": torch.ones(2).double(),
        }
    )
    assert {name: total.tolist() for name, total in sums.items()} == {
        "a": [2.0, 4.0],
        "b": 1.0,
        "c": [3.0],
        "d": [1, 1],
    }
    assert all(total.dtype == torch.float32 and not total.requires_grad for total in sums.values())
    sums["a"].zero_()
    assert value.tolist() == [1.0, 2.0]


def test_a_number_that_is_not_finite_stays_where_it_is():
    sums = add_up({"bad": torch.tensor([torch.nan, torch.inf]), "good": torch.tensor(1.0)})
    assert sums["bad"].isnan().tolist() == [True, False]
    assert sums["good"].item() == 1.0


def test_what_is_added_up_in_place_or_taken_over_stays_as_it_is():
    tensors = [torch.rand(2, 3), torch.rand(1)]
    before = [tensor.clone() for tensor in tensors]
    add_up_in_place(tensors)
    take_over_from_first(tensors)
    add_up_in_place([])
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_rows_are_its_own(shape, dtype):
    rows = torch.ones(shape, dtype=dtype)
    gathered = gather_rows(rows, [len(rows)])
    assert gathered.dtype == dtype
    assert torch.equal(gathered, rows)


@pytest.mark.parametrize("text", ["", "/tmp/a run", "Ärger mit Ü\n"])
def test_the_first_process_hears_itself(text):
    assert hear_from_first(text) == text


@given(st.binary())
def test_bytes_of_the_first_process_are_its_own(content):
    assert bytes_from_first(content) == content


SEVERAL = """\
import hashlib, random
from torch import distributed
from arcdist.distributed.exchange import bytes_from_first, hear_from_first

distributed.init_process_group("gloo")
rank = distributed.get_rank()
contents = [b"", bytes(range(256)), random.Random(0).randbytes(3_000_001), b"\\0"]
for content in contents:
    # What the others give is shorter, longer or nothing, and is not heard.
    heard = bytes_from_first(content if rank == 0 else b"x" * (rank * 1000) * bool(len(content) % 2))
    print(len(heard), hashlib.sha256(heard).hexdigest() == hashlib.sha256(content).hexdigest(), type(heard).__name__)
print(repr(hear_from_first("\u00c4rger" if rank == 0 else "nothing")))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_every_process_hears_the_bytes_of_the_first(run_ranks):
    ended = run_ranks(SEVERAL, 3)
    assert [(process.code, process.err) for process in ended] == [(0, "")] * 3
    expected = "0 True bytes\n256 True bytes\n3000001 True bytes\n1 True bytes\n'Ärger'\n"
    assert [process.out for process in ended] == [expected] * 3
