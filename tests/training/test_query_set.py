"""What this process is given of the batches of an epoch."""

import pytest
import torch

from arcdist.data import BucketedBatches, Dealer
from arcdist.training.query_set import QuerySet

CPU = torch.device("cpu")


@pytest.fixture
def session(build_tiny):
    return build_tiny("--max_batches=1000")


@pytest.fixture
def process_of(session):
    """The training queries as one of several processes has them."""

    def make(process, processes, passes=1, batch_size=4):
        training = session.training
        lengths = training.queries["length"][:]
        batches = BucketedBatches(lengths, training.queries["task"][:], batch_size=batch_size, window=64, seed=0)
        dealer = Dealer(lengths, processes=processes, passes=passes, quadratic=0.01)
        return QuerySet(training.queries, batches, training.collator, dealer, process)

    return make


def test_a_batch_names_its_queries_in_its_own_order(session):
    rows = [5, 0, 3]
    (batch,) = session.training.load([rows], 0, CPU)
    assert batch.ids == tuple(session.training.ids[row] for row in rows)
    assert len(batch) == 3
    assert batch.deal.rows == tuple(rows)
    (share,), (queries,) = batch.shares, batch.queries
    assert share.rows == tuple(rows)
    assert queries.ids == batch.ids


def test_the_epoch_s_batches_come_in_their_order_and_no_more_than_asked(session):
    training = session.training
    expected = [tuple(training.ids[row] for row in rows) for rows in training.batches.batches(1)]
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
                assert queries.ids == tuple(session.training.ids[row] for row in share.rows)
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
    by_length = sorted(range(len(training.ids)), key=training.queries["length"][:].__getitem__)
    dealer = Dealer(training.queries["length"][:], processes=1, passes=2, quadratic=0.0)
    alone = QuerySet(training.queries, training.batches, training.collator, dealer, 0)
    (batch,) = alone.load([[by_length[0], by_length[-1]]], 0, CPU)
    longest, shortest = batch.queries
    assert longest.inputs.tokens.shape[1] > shortest.inputs.tokens.shape[1]
    assert shortest.inputs.token_mask.all()
