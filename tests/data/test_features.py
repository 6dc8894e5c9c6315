"""Transformation features and the grid summary, as a batch has them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arcdist.data.batch import stack_grids
from arcdist.data.collate import Collator
from arcdist.data.features import FEATURE_NAMES, pair_features
from arcdist.data.queries import Query
from arcdist.data.tasks import Pair
from arcdist.data.text import embedded_tokenizer

GRIDS = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 9))
CONTEXTS = st.lists(st.builds(Pair, GRIDS, GRIDS), min_size=1, max_size=4)


def pair(before, after):
    return Pair(np.array(before, dtype=np.uint8), np.array(after, dtype=np.uint8))


def inputs_of(context, asked=((0,),)):
    query = Query("ab:test:0", "ab", tuple(context), np.array(asked, dtype=np.uint8), None)
    return Collator(embedded_tokenizer(), task_rows={})([query]).inputs


def named(*context):
    return dict(zip(FEATURE_NAMES, inputs_of(context).features[0].tolist(), strict=True))


def slow_features(one):
    """The definitions, cell by cell, of one pair."""
    before, after = one.input, one.output
    height, width = min(before.shape[0], after.shape[0]), min(before.shape[1], after.shape[1])
    first, second = before[:height, :width], after[:height, :width]
    foregrounds = (first > 0).ravel(), (second > 0).ravel()
    constant = any(foreground.all() or not foreground.any() for foreground in foregrounds)
    colors_in, colors_out = set(before.ravel().tolist()), set(after.ravel().tolist())

    def symmetry(grid):
        return ((grid == grid[::-1]).mean() + (grid == grid[:, ::-1]).mean()) / 2

    return [
        min(after.size / before.size, 4.0),
        float(before.shape == after.shape),
        (first != second).mean(),
        len(colors_in & colors_out) / len(colors_in),
        0.0 if constant else np.corrcoef(*foregrounds)[0, 1],
        symmetry(after) - symmetry(before),
        (after > 0).mean() - (before > 0).mean(),
        len(colors_out - colors_in) / 10,
        len(colors_in - colors_out) / 10,
        len(colors_in) / 10,
        len(colors_out) / 10,
        *(side / 30 for side in before.shape + after.shape),
    ]


def test_the_names_come_in_the_published_order():
    names = """
        size_change_ratio size_preserved pixel_change_ratio color_preservation spatial_correlation symmetry_change
        density_change colors_added colors_removed input_color_count output_color_count input_height input_width
        output_height output_width
    """
    assert list(FEATURE_NAMES) == names.split()


def test_features_by_hand():
    # Overlap: [[0, 1]] against [[1, 1]]. Input symmetric in 2 + 0 of 4 comparisons, output in 4 + 4 of 8.
    features = named(pair([[0, 1]], [[1, 1], [2, 2]]))
    expected = {
        "size_change_ratio": 2.0,
        "size_preserved": 0.0,
        "pixel_change_ratio": 0.5,
        "color_preservation": 0.5,
        "spatial_correlation": 0.0,
        "symmetry_change": 0.5 * (0 + 1) - 0.5 * (1 + 0),
        "density_change": 0.5,
        "colors_added": 0.1,
        "colors_removed": 0.1,
        "input_color_count": 0.2,
        "output_color_count": 0.2,
        "input_height": 1 / 30,
        "input_width": 2 / 30,
        "output_height": 2 / 30,
        "output_width": 2 / 30,
    }
    assert features == {name: np.float32(value).item() for name, value in expected.items()}


def test_an_inverted_foreground_is_anticorrelated():
    features = named(pair([[0, 5], [0, 5]], [[5, 0], [5, 0]]))
    assert features["spatial_correlation"] == -1.0
    assert features["pixel_change_ratio"] == 1.0
    assert features["size_preserved"] == 1.0


def test_the_ratio_of_sizes_is_clipped():
    assert named(pair([[1]], [[1] * 30] * 30))["size_change_ratio"] == 4.0


@given(CONTEXTS)
def test_features_equal_a_slow_loop_and_are_bounded(context):
    features = inputs_of(context).features[0].numpy()
    np.testing.assert_allclose(features, np.mean([slow_features(one) for one in context], axis=0), rtol=1e-5, atol=1e-6)
    assert features.dtype == np.float32
    assert (features >= -1).all()
    assert (features <= 4).all()
    assert (features[1:] <= 1).all()


@given(CONTEXTS)
def test_neither_canvas_nor_neighbours_change_a_bit(context):
    sizes = np.array([[one.input.shape, one.output.shape] for one in context])
    together = pair_features(
        stack_grids([one.input for one in context], 15, 20), stack_grids([one.output for one in context], 15, 20), sizes
    )
    alone = [
        pair_features(stack_grids([one.input], 12, 12), stack_grids([one.output], 12, 12), sizes[place, None])[0]
        for place, one in enumerate(context)
    ]
    assert np.array_equal(together, np.stack(alone))


def test_summary_by_hand():
    context = [pair([[1, 1]], [[2]]), pair([[1, 3], [3, 3]], [[0], [2]])]
    summary = inputs_of(context, [[0, 0, 9]]).summary[0].numpy()
    query, inputs, outputs, sides = np.split(summary, [10, 20, 30])
    assert summary.dtype == np.float32
    np.testing.assert_allclose(query, [2 / 3, 0, 0, 0, 0, 0, 0, 0, 0, 1 / 3])
    np.testing.assert_allclose(inputs, [0, (1 + 0.25) / 2, 0, 0.75 / 2, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(outputs, [0.25, 0, 0.75, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(sides, [1 / 30, 3 / 30])
