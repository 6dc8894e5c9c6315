"""The context encoder: rows and columns of pairs as tokens, and one summary a task."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from arcdist.models.context import ContextEncoder, one_hot_colors


@pytest.fixture
def encoder(shaken):
    torch.manual_seed(0)
    return shaken(ContextEncoder(num_colors=10, max_grid_size=30, hidden_dim=32, condition_dim=6, heads=2))


def tokens(context, row):
    """Keys and values of a query's real tokens: [n, heads, 2 Dh]."""
    real = context.token_mask[row, 0, 0]
    return torch.cat([context.keys[row], context.values[row]], dim=-1)[:, real].movedim(1, 0)


def test_one_hot_colours_by_hand():
    cells = one_hot_colors(torch.tensor([[0, 2], [-1, 1]]), 3)
    assert cells.tolist() == [[[1, 0, 0, 0], [0, 0, 1, 0]], [[0, 0, 0, 1], [0, 1, 0, 0]]]
    assert cells.dtype == torch.float32


def test_a_token_for_each_row_and_column_that_a_pair_has(encoder, mixed):
    context = encoder(mixed)
    assert context.keys.shape == context.values.shape == (3, 2, 3 * (7 + 8), 16)
    assert context.summary.shape == (3, 6)
    mask = context.token_mask.reshape(3, 3, 15)  # 7 rows and 8 columns of each pair
    # Rows and columns of the larger of input and output: 3 x 3 | 4 x 8, 2 x 4, 4 x 4 | 5 x 2, 6 x 3, and absent pairs.
    sizes = [[(3, 3), (0, 0), (0, 0)], [(4, 8), (2, 4), (4, 4)], [(5, 2), (6, 3), (0, 0)]]
    for row in range(3):
        for pair, (height, width) in enumerate(sizes[row]):
            expected = [r < height for r in range(7)] + [c < width for c in range(8)]
            assert mask[row, pair].tolist() == expected


def test_the_summary_is_the_mean_over_all_cells_of_all_pairs(encoder, mixed):
    """A slow loop over pairs and cells, each pair on a canvas of its own."""
    summary = encoder(mixed).summary
    width = encoder.cells.out_features
    for row in range(3):
        total, count = torch.zeros(width), 0
        for pair in range(3):
            before, after = mixed.context_inputs[row, pair], mixed.context_outputs[row, pair]
            canvas = torch.zeros(7, 8, width)
            inside = (before >= 0) | (after >= 0)
            for r, c in torch.nonzero(inside).tolist():
                seen = torch.cat([one_hot_colors(grid[r, c], 10) for grid in (before, after)])
                canvas[r, c] = encoder.cells(seen) + encoder.rows[r] + encoder.columns[c]
            for r, c in torch.nonzero(inside).tolist():
                mixed_cell = encoder.mix.bias.clone()
                for dr in (-1, 0, 1):
                    for dc in (-1, 0, 1):
                        if 0 <= r + dr < 7 and 0 <= c + dc < 8:
                            mixed_cell += encoder.mix.weight[:, :, dr + 1, dc + 1] @ canvas[r + dr, c + dc]
                total += F.silu(canvas[r, c] + mixed_cell)
                count += 1
        torch.testing.assert_close(summary[row], encoder.to_summary(total / count), rtol=1e-4, atol=1e-5)


def test_padding_and_neighbours_change_no_token(encoder, mixed, mixed_queries, collate, enlarged):
    expected, large = encoder(mixed), encoder(enlarged(mixed, margin=2, pairs=1))
    for row, query in enumerate(mixed_queries):
        alone = encoder(collate(query).inputs)
        for context, place in ((large, row), (alone, 0)):
            torch.testing.assert_close(tokens(context, place), tokens(expected, row), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(context.summary[place], expected.summary[row], rtol=1e-5, atol=1e-5)


def test_the_order_of_the_pairs_orders_the_tokens_and_nothing_else(encoder, mixed):
    order = [2, 0, 1]
    turned = replace(
        mixed,
        context_inputs=mixed.context_inputs[:, order],
        context_outputs=mixed.context_outputs[:, order],
        context_sizes=mixed.context_sizes[:, order],
    )
    first, second = encoder(mixed), encoder(turned)
    torch.testing.assert_close(second.summary, first.summary, rtol=1e-5, atol=1e-5)
    shape = (3, 2, 3, 15, 16)
    torch.testing.assert_close(second.keys.reshape(shape), first.keys.reshape(shape)[:, :, order], rtol=1e-5, atol=1e-5)


def test_input_and_output_are_told_apart(encoder, mixed):
    swapped = replace(mixed, context_inputs=mixed.context_outputs, context_outputs=mixed.context_inputs)
    assert ((encoder(swapped).summary - encoder(mixed).summary).abs().amax(-1) > 1e-3).all()


def test_the_query_is_no_part_of_the_context(encoder, mixed):
    other = replace(mixed, query=torch.where(mixed.query >= 0, 0, -1), query_size=mixed.query_size * 0 + 1)
    for name in ("keys", "values", "summary"):
        assert torch.equal(getattr(encoder(mixed), name), getattr(encoder(other), name))
