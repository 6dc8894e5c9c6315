"""Symmetries: what they do to grids and queries, and how they are drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arcdist.data.augment import Augmentation, draw_augmentation, draw_augmentations
from arcdist.data.queries import Query
from arcdist.data.tasks import Pair


def grids(longest_side):
    sides = st.integers(1, longest_side)
    return arrays(np.uint8, st.tuples(sides, sides), elements=st.integers(0, 9))


PAIRS = st.builds(Pair, grids(6), grids(6))


def draw(seed, num_pairs, *, dihedral=True, colors=True, order=True):
    rng = np.random.default_rng(seed)
    return draw_augmentation(rng, dihedral=dihedral, colors=colors, order=order, num_pairs=num_pairs)


@given(grids(30), st.integers(0, 7), st.permutations(range(1, 10)))
def test_a_grid_comes_back(grid, dihedral, colors):
    augmentation = Augmentation(dihedral, np.array([0, *colors], dtype=np.uint8), ())
    changed = augmentation.apply(grid)
    assert changed.dtype == np.uint8
    assert np.array_equal(augmentation.invert(changed), grid)
    assert np.array_equal(changed == 0, augmentation.apply((grid != 0).astype(np.uint8)) == 0)


@given(st.lists(PAIRS, min_size=1, max_size=4), PAIRS, st.integers(0, 2**32))
def test_a_query_comes_back(context, asked, seed):
    augmentation = draw(seed, len(context))
    changed = augmentation.apply_query(Query("ab:test:0", "ab", tuple(context), asked.input, asked.output))
    for place, pair in zip(augmentation.order, changed.context, strict=True):
        assert np.array_equal(augmentation.invert(pair.input), context[place].input)
        assert np.array_equal(augmentation.invert(pair.output), context[place].output)
    assert np.array_equal(augmentation.invert(changed.input), asked.input)
    assert np.array_equal(augmentation.invert(changed.target), asked.output)


@pytest.mark.parametrize("dihedral", range(8))
def test_a_symmetry_is_a_transposition_and_then_turns(dihedral):
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    expected = np.rot90(grid.T if dihedral >= 4 else grid, dihedral % 4)
    changed = Augmentation(dihedral, np.arange(10, dtype=np.uint8), ()).apply(grid)
    assert changed.tolist() == expected.tolist()


def test_the_eight_symmetries_differ():
    grid = np.arange(9, dtype=np.uint8).reshape(3, 3)
    identity = np.arange(10, dtype=np.uint8)
    assert len({Augmentation(dihedral, identity, ()).apply(grid).tobytes() for dihedral in range(8)}) == 8


def test_a_query_changes_as_one():
    context = tuple(Pair(np.array([[i, 1]], np.uint8), np.array([[i]], np.uint8)) for i in (5, 6))
    query = Query("ab:train:2", "ab", context, np.array([[7, 1]], np.uint8), np.array([[7]], np.uint8))
    colors = np.array([0, 2, 1, 3, 4, 5, 6, 8, 7, 9], dtype=np.uint8)
    changed = Augmentation(4, colors, (1, 0)).apply_query(query)
    assert [pair.input.tolist() for pair in changed.context] == [[[6], [2]], [[5], [2]]]
    assert [pair.output.tolist() for pair in changed.context] == [[[6]], [[5]]]
    assert changed.input.tolist() == [[8], [2]]
    assert changed.target.tolist() == [[8]]
    assert (changed.id, changed.task_id) == ("ab:train:2", "ab")


def test_an_order_of_another_length_is_refused():
    cell = np.zeros((1, 1), np.uint8)
    query = Query("ab:test:0", "ab", (Pair(cell, cell),), cell, None)
    with pytest.raises(ValueError, match="drawn for 3 pairs was given 1"):
        draw(0, 3).apply_query(query)


def test_all_symmetries_are_drawn():
    drawn = [draw(seed, 3) for seed in range(400)]
    counts = np.bincount([augmentation.dihedral for augmentation in drawn], minlength=8)
    assert counts.min() >= 25  # 50 each on average
    assert len({augmentation.order for augmentation in drawn}) == 6
    first_colors = np.stack([augmentation.colors for augmentation in drawn])
    assert (first_colors[:, 0] == 0).all()
    assert (np.sort(first_colors, axis=1) == np.arange(10)).all()
    assert len(set(first_colors[:, 1].tolist())) == 9


def test_what_is_off_is_the_identity_and_leaves_the_other_draws():
    whole = draw(5, 4)
    no_colors = draw(5, 4, colors=False)
    assert no_colors.colors.tolist() == list(range(10))
    assert (no_colors.dihedral, no_colors.order) == (whole.dihedral, whole.order)
    nothing = draw(5, 4, dihedral=False, colors=False, order=False)
    assert (nothing.dihedral, nothing.colors.tolist(), nothing.order) == (0, list(range(10)), (0, 1, 2, 3))


@given(count=st.integers(1, 10), seed=st.integers(0, 2**32))
def test_views_of_a_query_have_different_symmetries(count, seed):
    all_on = {"dihedral": True, "colors": True, "order": True, "num_pairs": 3}
    views = draw_augmentations(np.random.default_rng(seed), count, **all_on)
    one = draw_augmentation(np.random.default_rng(seed), **all_on)
    assert (views[0].dihedral, views[0].colors.tolist(), views[0].order) == (
        *(one.dihedral, one.colors.tolist(), one.order),
    )
    assert len(views) == count
    assert len({view.dihedral for view in views[:8]}) == min(count, 8)
    assert len({tuple(view.colors) for view in views}) == count
    off = draw_augmentations(np.random.default_rng(seed), count, **all_on | {"dihedral": False, "colors": False})
    assert {(view.dihedral, tuple(view.colors)) for view in off} == {(0, tuple(range(10)))}
