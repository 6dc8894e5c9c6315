"""What processes send each other, alone and among several."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist.distributed import collectives
from arcdist.distributed.collectives import (
    all_reduce_sum,
    all_reduce_sum_in_place,
    broadcast_in_place,
    broadcast_tensors,
    broadcast_text,
    check_agreement,
    check_replicas,
    fingerprints,
    gather_rows,
    is_distributed,
)
from arcdist.errors import ConfigError, ReplicaError

shapes = st.lists(st.lists(st.integers(1, 3), max_size=2).map(tuple), min_size=1, max_size=4)


def test_there_is_nobody_to_talk_to():
    assert not is_distributed()


@given(shapes)
def test_sums_are_given_back_by_name_and_in_their_shapes(shapes):
    named = {f"name {index}": torch.rand(shape) for index, shape in enumerate(shapes)}
    sums = all_reduce_sum(named)
    assert list(sums) == list(named)
    for name, value in named.items():
        assert torch.equal(sums[name], value)


def test_sums_are_float32_copies_without_a_graph():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    sums = all_reduce_sum(
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
    sums = all_reduce_sum({"bad": torch.tensor([torch.nan, torch.inf]), "good": torch.tensor(1.0)})
    assert sums["bad"].isnan().tolist() == [True, False]
    assert sums["good"].item() == 1.0


def test_what_is_added_up_in_place_or_taken_over_stays_as_it_is():
    tensors = [torch.rand(2, 3), torch.rand(1)]
    before = [tensor.clone() for tensor in tensors]
    all_reduce_sum_in_place(tensors)
    broadcast_in_place(tensors)
    all_reduce_sum_in_place([])
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_rows_are_its_own(shape, dtype):
    rows = torch.ones(shape, dtype=dtype)
    gathered = gather_rows(rows, [len(rows)])
    assert gathered.dtype == dtype
    assert torch.equal(gathered, rows)


@pytest.mark.parametrize("text", ["", "/tmp/a run", "Ärger mit Ü\n"])
def test_the_only_process_gets_its_own_text(text):
    assert broadcast_text(text) == text


SEVERAL = """\
import hashlib
from torch import distributed
from arcdist.distributed.collectives import broadcast_text

distributed.init_process_group("gloo")
rank = distributed.get_rank()
for text in ("", "\u00c4rger\\n\\0", "0123456789" * 300_001):
    # What the others give is shorter, longer or nothing, and is ignored.
    print(broadcast_text(text if rank == 0 else "x" * (rank * 1000) * (len(text) % 2)) == text)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_every_process_gets_the_text_of_the_first(run_ranks):
    ended = run_ranks(SEVERAL, 3)
    assert [(process.code, process.err, process.out) for process in ended] == [(0, "", "True\n" * 3)] * 3


TENSORS = """\
import torch
from torch import distributed
from arcdist.distributed import collectives

distributed.init_process_group("gloo")
rank = distributed.get_rank()
sizes, broadcast = [], distributed.broadcast

def noting(tensor, src):
    sizes.append(tensor.numel() * tensor.element_size())
    broadcast(tensor, src=src)

distributed.broadcast, collectives._PIECE = noting, 1000
generator = torch.Generator().manual_seed(0)
named = {
    "large": torch.randn(100, 9, generator=generator),
    "turned": torch.randn(5, 3, generator=generator).T,
    "half": torch.randn(7, generator=generator).bfloat16(),
    "number": torch.tensor(3, dtype=torch.int64),
    "truth": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
}
received = collectives.broadcast_tensors(named if rank == 0 else {"other": torch.ones(3)})
same = [torch.equal(received[name], value) and received[name].dtype == value.dtype for name, value in named.items()]
print(list(received) == list(named), same == [True] * 6, max(sizes))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_every_process_gets_the_tensors_of_the_first_through_a_small_buffer(run_ranks):
    ended = run_ranks(TENSORS, 3)
    assert [(process.code, process.err) for process in ended] == [(0, "")] * 3
    assert [process.out for process in ended] == ["True True 1000\n"] * 3


def test_tensors_of_the_only_process_are_its_own():
    named = {"a": torch.arange(3)}
    assert broadcast_tensors(named)["a"] is named["a"]


AGREEING = """\
from torch import distributed
from arcdist.distributed.collectives import check_agreement
from arcdist.errors import ConfigError

distributed.init_process_group("gloo")
rank = distributed.get_rank()
check_agreement({"train.epochs": "3", "train.seed": "0"})
try:
    check_agreement({"train.seed": "7" if rank == 1 else "0"})
except ConfigError as error:
    print(error)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_only_the_process_that_differs_from_rank_0_reports_it(run_ranks):
    ended = run_ranks(AGREEING, 3)
    assert [(process.code, process.err) for process in ended] == [(0, "")] * 3
    assert ended[0].out == ended[2].out == ""
    assert "would not train what rank 0 trains: train.seed is 7, there 0. Start every machine with" in ended[1].out


def first_says(monkeypatch, facts):
    monkeypatch.setattr("arcdist.distributed.collectives.broadcast_text", lambda text: json.dumps(facts))


def test_what_differs_is_named_with_both_values(monkeypatch):
    first_says(monkeypatch, {"train.seed": "0", "train.epochs": "3"})
    check_agreement({"train.epochs": "3", "train.seed": "0"})
    with pytest.raises(ConfigError, match=r"This process, on .*: train\.seed is 1, there 0\. Start every") as raised:
        check_agreement({"train.seed": "1", "train.epochs": "3"})
    assert raised.value.exit_code == 2


def test_a_few_of_many_differences_are_named(monkeypatch):
    first_says(monkeypatch, dict.fromkeys("abcde", "0"))
    with pytest.raises(ConfigError, match=r"rank 0 trains: a is 1, .*; b is 1, .*; c is 1, .*; and 2 more\."):
        check_agreement(dict.fromkeys("abcde", "1"))


def test_a_fact_that_one_of_them_lacks_differs(monkeypatch):
    first_says(monkeypatch, {"train.seed": "0"})
    with pytest.raises(ConfigError, match=r"train\.warmth is 1, there None"):
        check_agreement({"train.seed": "0", "train.warmth": "1"})


CPU = torch.device("cpu")
FACTOR = 0x5851F42D4C957F2D
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def fingerprint(*tensors):
    return fingerprints({"module": tensors}, CPU).item()


def weight(place):
    """The weight of a place, counted from 1, in Python's own integers."""

    def signed(value):
        return (value + 2**63) % 2**64 - 2**63

    mixed = signed(place * 0x9E3779B97F4A7C15)
    mixed = signed((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9)
    mixed = signed((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB)
    return (mixed ^ (mixed >> 31)) | 1


def test_by_hand():
    # The bits of 1.0, 0.0 and -2.0 as 32-bit integers.
    numbers, flags = torch.tensor([[1.0], [0.0], [-2.0]]), torch.tensor([True, False])
    first = 0x3F800000 * weight(1) + (0xC0000000 - 2**32) * weight(3)
    assert fingerprint(numbers) % 2**64 == first % 2**64
    assert fingerprint(numbers, flags) % 2**64 == (first * FACTOR + weight(1)) % 2**64


def test_a_module_each_and_nothing_of_nothing():
    one, two = torch.ones(3), torch.ones(3, dtype=torch.int8)
    found = fingerprints({"one": [one], "two": [two], "both": [one, two], "none": []}, CPU)
    assert found.dtype == torch.int64
    assert found.tolist() == [fingerprint(one), fingerprint(two), fingerprint(one, two), 0]
    assert fingerprints({}, CPU).shape == (0,)


def test_large_tensors_are_read_in_chunks(monkeypatch):
    numbers = torch.arange(10, dtype=torch.int16)
    whole = fingerprint(numbers)
    monkeypatch.setattr(collectives, "_CHUNK", 4)
    assert fingerprint(numbers) == fingerprint(numbers[:4], numbers[4:8], numbers[8:]) != whole
    swapped = torch.cat([numbers[4:8], numbers[:4], numbers[8:]])
    assert fingerprint(swapped) != fingerprint(numbers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_single_bit_of_every_dtype_shows(dtype):
    tensor = torch.zeros(3, 5, dtype=dtype)
    known = {fingerprint(tensor)}
    bits_each = 1 if dtype == torch.bool else 8 * tensor.element_size()
    octets = tensor.view(torch.uint8).reshape(-1)
    for index in range(tensor.numel()):
        for bit in range(bits_each):
            octet = index * tensor.element_size() + bit // 8
            octets[octet] = 1 << bit % 8
            known.add(fingerprint(tensor))
            octets[octet] = 0
    assert len(known) == 1 + tensor.numel() * bits_each


@given(
    values=st.lists(st.floats(width=32), min_size=2, max_size=40),
    places=st.tuples(st.integers(0, 39), st.integers(0, 39)),
)
def test_numbers_that_change_places_show(values, places):
    tensor = torch.tensor(values)
    first, second = (place % len(values) for place in places)
    swapped = tensor.clone()
    swapped[first], swapped[second] = tensor[second], tensor[first]
    same = torch.equal(swapped.view(torch.int32), tensor.view(torch.int32))
    assert (fingerprint(swapped) == fingerprint(tensor)) is same


def test_tensors_that_change_places_show():
    one, two = torch.ones(4), torch.full((4,), 2.0)
    assert fingerprint(one, two) != fingerprint(two, one)


@given(st.lists(st.sampled_from([-1, 1]), min_size=2, max_size=60))
def test_a_last_bit_here_and_there_shows(signs):
    # What replicas do when they begin to drift: many last bits, up and down, whose plain sum may be nothing.
    tensor = torch.linspace(1.0, 2.0, len(signs))
    drifted = (tensor.view(torch.int32) + torch.tensor(signs, dtype=torch.int32)).view(torch.float32)
    assert fingerprint(drifted) != fingerprint(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_two_signs_show(dtype):
    # The highest bit of an integer as wide as the sum would count alike wherever it is.
    tensor = torch.linspace(1.0, 2.0, 50, dtype=dtype)
    flipped = [tensor.clone() for _ in range(49)]
    for index, one in enumerate(flipped):
        one[index : index + 2] *= -1
    assert len({fingerprint(one) for one in (tensor, *flipped)}) == 50


def test_what_compares_equal_but_is_not_shows():
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))
    nan = torch.tensor([float("nan")])
    assert fingerprint(nan) == fingerprint(nan.clone())


def test_strides_do_not_matter_and_gradients_do_not_matter():
    tensor = torch.arange(12.0).reshape(3, 4).requires_grad_()
    assert fingerprint(tensor) == fingerprint(tensor.t().contiguous().t())
    assert fingerprint(tensor) != fingerprint(tensor.t())
    assert not fingerprints({"module": [tensor]}, CPU).requires_grad


def test_with_one_process_nothing_is_compared():
    agent = iter([torch.ones(1)])
    check_replicas({"agent": agent}, CPU, step=1)
    assert len(list(agent)) == 1  # It was not even read.


A, B, C = 0xA, -1, 0xC
HEX = {A: "000000000000000a", B: "ffffffffffffffff", C: "000000000000000c"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([A, B], f"rank 1's agent differs from rank 0's ({HEX[A]} on rank 0, {HEX[B]} on rank 1)"),
        ([A, A, B], f"rank 2's agent differs from the others' ({HEX[A]} on the others, {HEX[B]} on rank 2)"),
        ([B, A, A], f"rank 0's agent differs from the others' ({HEX[B]} on rank 0, {HEX[A]} on the others)"),
        (
            [A, B, A, A, C, A, B],
            f"ranks 1, 4 and 6's agent differs from the others' "
            f"({HEX[A]} on the others, {HEX[B]} on ranks 1 and 6, {HEX[C]} on rank 4)",
        ),
        (
            [A, B, A, B],
            f"ranks 1 and 3's agent differs from ranks 0 and 2's "
            f"({HEX[A]} on ranks 0 and 2, {HEX[B]} on ranks 1 and 3)",
        ),
    ],
)
def test_who_differs(values, says, monkeypatch):
    def all_gather(gathered, own):
        for tensor, value in zip(gathered, values, strict=True):
            tensor.fill_(value)

    monkeypatch.setattr(collectives, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: len(values))
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    with pytest.raises(ReplicaError) as raised:
        check_replicas({"agent": [torch.ones(1)]}, CPU, step=7)
    before = "After step 7 the processes no longer hold the same parameters: "
    assert str(raised.value).startswith(f"{before}{says}. Go back to a checkpoint")


PROGRAM = """\
import json, sys
import torch
from torch import distributed
from arcdist.distributed.collectives import check_replicas
from arcdist.errors import ReplicaError

distributed.init_process_group("gloo")
rank, cpu = distributed.get_rank(), torch.device("cpu")
agent, solver = torch.linspace(0, 1, 1000).reshape(10, 100), torch.arange(7)

def message(**modules):
    try:
        check_replicas(modules, cpu, step=400)
    except ReplicaError as error:
        return f"{error.exit_code} {error}"

said = [message(agent=[agent, agent.bfloat16()], solver=[solver])]
if rank == 1:
    agent.view(-1).view(torch.int32)[777] += 1
said.append(message(agent=[agent], solver=[solver]))
if rank == 0:
    solver[[2, 5]] = solver[[5, 2]]
said.append(message(solver=[solver], agent=[agent]))
print(json.dumps(said))
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_learns_which_rank_and_module_differ(run_ranks, ranks):
    ended = run_ranks(PROGRAM, ranks)
    assert [(process.code, process.err) for process in ended] == [(0, "")] * ranks
    assert len({process.out for process in ended}) == 1
    alike, one, both = json.loads(ended[0].out)
    assert alike is None
    assert one.startswith("6 After step 400 the processes no longer hold the same parameters: rank 1's agent differs ")
    assert "solver" not in one
    if ranks == 2:
        assert "rank 1's solver differs from rank 0's (" in both
        assert "; rank 1's agent differs from rank 0's (" in both
    else:
        assert "rank 0's solver differs from the others' (" in both
        assert "; rank 1's agent differs from the others' (" in both
