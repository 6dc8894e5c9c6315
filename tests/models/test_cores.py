"""The context encoder and both cores: what they read, what they must not read, what a step does."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from arcdist.models import ARCPromptGuidedAgent
from arcdist.models.cores import (
    CellAttention,
    ContextEncoder,
    ConvCore,
    MatrixConv2d,
    cells_within,
    dropout_factors,
    one_hot_colors,
    rotated,
    rotations,
)


@pytest.fixture
def encoder(shaken):
    torch.manual_seed(0)
    return shaken(ContextEncoder(num_colors=10, max_grid_size=30, hidden_dim=32, heads=2))


def tokens(context, row):
    """Keys and values of a query's real tokens: [n, heads, 2 Dh]."""
    real = context.token_mask[row, 0, 0]
    return torch.cat([context.keys[row], context.values[row]], dim=-1)[:, real].movedim(1, 0)


def test_one_hot_colours_by_hand():
    cells = one_hot_colors(torch.tensor([[0, 2], [-1, 1]]), 3)
    assert cells.tolist() == [[[1, 0, 0, 0], [0, 0, 1, 0]], [[0, 0, 0, 1], [0, 1, 0, 0]]]
    assert cells.dtype == torch.float32


def test_cells_within_sizes_by_hand():
    cells = cells_within(torch.tensor([[1, 2], [2, 1], [9, 9]]), 2, 3)
    assert cells.int().tolist() == [[[1, 1, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]]]


def test_dropout_leaves_out_the_share_that_is_asked_for_by_each_row_s_seed_alone():
    seeds = torch.arange(1, 4001)
    factors = dropout_factors(seeds, 32, 0.2)
    assert factors.unique().tolist() == [0.0, 1.25]
    dropped = (factors == 0.0).float()
    deviation = (0.2 * 0.8) ** 0.5
    assert dropped.mean().item() == pytest.approx(0.2, abs=4 * deviation / dropped.numel() ** 0.5)
    # Channels, neighbouring channels and neighbouring seeds are independent.
    assert (dropped.mean(0) - 0.2).abs().max() < 4 * deviation / len(seeds) ** 0.5
    for one, other in ((dropped[:, 1:], dropped[:, :-1]), (dropped[1:], dropped[:-1])):
        covariance = ((one - 0.2) * (other - 0.2)).mean()
        assert covariance.abs() < 4 * deviation**2 / one.numel() ** 0.5
    assert torch.equal(dropout_factors(seeds[[7, 3]], 32, 0.2), factors[[7, 3]])
    assert torch.equal(dropout_factors(seeds[:3], 32, 0.0), torch.ones(3, 32))
    assert torch.equal(dropout_factors(torch.tensor([0, 7]), 32, 0.2)[0], torch.ones(32))


def test_a_token_for_each_row_and_column_that_a_pair_has(encoder, mixed):
    context = encoder(mixed)
    assert context.keys.shape == context.values.shape == (3, 2, 3 * (7 + 8), 16)
    assert context.summary.shape == (3, 32)
    mask = context.token_mask.reshape(3, 3, 15)  # 7 rows and 8 columns of each pair
    # Rows and columns of the larger of input and output: 3 x 3 | 4 x 8, 2 x 4, 4 x 4 | 5 x 2, 6 x 3, and absent pairs.
    sizes = [[(3, 3), (0, 0), (0, 0)], [(4, 8), (2, 4), (4, 4)], [(5, 2), (6, 3), (0, 0)]]
    for row in range(3):
        for pair, (height, width) in enumerate(sizes[row]):
            expected = [r < height for r in range(7)] + [c < width for c in range(8)]
            assert mask[row, pair].tolist() == expected


def test_the_summary_is_the_mean_over_all_cells_of_all_pairs(encoder, mixed):
    """A slow loop over pairs and cells, each pair on its own canvas."""
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


CONV_DIM, RECURSIVE_DIM, T = 12, 16, 3


@pytest.fixture
def conv_core(shaken):
    torch.manual_seed(0)
    return shaken(ConvCore(num_colors=10, hidden_dim=CONV_DIM, max_steps=T))


def no_belief(grid):
    return torch.zeros(*grid.shape, 10)


def start_conv(core, grid, conditioning=None, area=None):
    area = torch.ones_like(grid, dtype=torch.bool) if area is None else area
    conditioning = torch.zeros(len(grid), CONV_DIM) if conditioning is None else conditioning
    return core.start(one_hot_colors(grid, 10), torch.tensor([[9, 9]] * len(grid)), conditioning, None, area)


def test_the_encoder_widens_as_the_seed_s_did():
    core = ConvCore(num_colors=10, hidden_dim=256, max_steps=5)
    assert (core.first.out_channels, core.second.out_channels) == (128, 256)
    assert len(core.heads) == 5


def test_step_t_is_read_by_head_t(conv_core):
    grid = torch.zeros(1, 4, 4, dtype=torch.long)
    trajectory = start_conv(conv_core, grid)
    first = [trajectory(no_belief(grid)) for _ in range(T)]
    with torch.no_grad():
        conv_core.heads[1].bias += 1.0
    trajectory = start_conv(conv_core, grid)
    second = [trajectory(no_belief(grid)) for _ in range(T)]
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, False, True]
    with pytest.raises(StopIteration):
        trajectory(no_belief(grid))


def test_a_state_sees_three_cells_in_each_direction(conv_core):
    grid = torch.zeros(1, 9, 9, dtype=torch.long)
    changed = grid.clone()
    changed[0, 4, 4] = 6
    states = [start_conv(conv_core, each)(no_belief(each)) for each in (grid, changed)]
    difference = (states[0] - states[1]).abs().amax(-1)[0]
    rows, columns = torch.nonzero(difference > 1e-6, as_tuple=True)
    assert (rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()) == (1, 7, 1, 7)


def test_cells_beyond_the_working_area_are_zero_and_unread(conv_core):
    area = torch.zeros(1, 5, 5, dtype=torch.bool)
    area[0, :3, :2] = True
    grid = torch.randint(0, 10, (1, 5, 5), generator=torch.Generator().manual_seed(0))
    other = torch.where(area, grid, (grid + 1) % 10)
    state = start_conv(conv_core, grid, area=area)(no_belief(grid))
    assert not state[~area].any()
    assert state[area].abs().max() > 0
    wild = torch.where(area[..., None], 0.0, 5.0).expand(1, 5, 5, 10)
    torch.testing.assert_close(start_conv(conv_core, other, area=area)(wild), state, rtol=0, atol=1e-6)
    torch.testing.assert_close(start_conv(conv_core, grid[:, :3, :2])(no_belief(grid)[:, :3, :2]), state[:, :3, :2])


def test_conditioning_and_belief_are_fused(conv_core):
    grid = torch.zeros(2, 3, 3, dtype=torch.long)
    first = start_conv(conv_core, grid)(no_belief(grid))
    conditioning = torch.tensor([[0.0] * CONV_DIM, [1.0] * CONV_DIM])
    second = start_conv(conv_core, grid, conditioning)(no_belief(grid))
    assert torch.equal(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-3
    sure = no_belief(grid)
    sure[0, 1, 1, 5] = 1.0
    third = start_conv(conv_core, grid)(sure)
    assert (first[0] - third[0]).abs().max() > 1e-3
    assert torch.equal(first[1], third[1])


def test_the_conv_agent_reads_neither_context_nor_sizes(mixed, shaken):
    torch.manual_seed(0)
    agent = shaken(ARCPromptGuidedAgent("conv", hidden_dim=CONV_DIM, prompt_dim=4, max_steps=T))
    assert agent.read_context(mixed) is None
    assert agent.context_encoder is None
    assert agent.task_vectors is None


@pytest.fixture
def agent(shaken):
    torch.manual_seed(0)
    return shaken(ARCPromptGuidedAgent("recursive", hidden_dim=RECURSIVE_DIM, prompt_dim=8, max_steps=2))


@pytest.fixture
def start_recursive(agent, mixed):
    """Starts a trajectory of the first query's core: a 3 x 3 grid, seen as one of `size` on its working area."""

    def begin(inputs=mixed, size=None, conditioning=None):
        return agent.core.start(
            one_hot_colors(inputs.query, 10),
            inputs.query_size if size is None else size,
            torch.zeros(len(inputs.query), RECURSIVE_DIM) if conditioning is None else conditioning,
            agent.read_context(inputs),
            cells_within(inputs.working_area, *inputs.query.shape[1:]),
        )

    return begin


def changed(first, second):
    """Which queries' states differ anywhere in the 3 x 3 cells that all of them have."""
    return [bool((a - b).abs()[:3, :3].max() > 1e-3) for a, b in zip(first, second, strict=True)]


def test_a_convolution_of_a_matrix_is_that_of_its_kernel():
    made = []
    for kind in (nn.Conv2d, MatrixConv2d):
        torch.manual_seed(0)
        made.append(kind(3, 5, kernel_size=3, padding=1))
    plain, ours = made
    assert torch.equal(ours.weight, plain.weight.flatten(1))
    assert torch.equal(ours.bias, plain.bias)
    cells = torch.randn(2, 3, 4, 6)
    for layer in made:
        layer(cells).square().sum().backward()
    assert torch.equal(ours(cells), plain(cells))
    assert torch.equal(ours.weight.grad, plain.weight.grad.flatten(1))


def test_steps_share_their_weights():
    shallow, deep = (
        ARCPromptGuidedAgent("recursive", hidden_dim=RECURSIVE_DIM, prompt_dim=8, max_steps=steps) for steps in (1, 9)
    )
    assert {name: value.shape for name, value in shallow.state_dict().items()} == {
        name: value.shape for name, value in deep.state_dict().items()
    }


def test_more_steps_go_on_from_fewer(mixed, shaken):
    def plan(steps):
        torch.manual_seed(0)
        agent = shaken(
            ARCPromptGuidedAgent("recursive", hidden_dim=RECURSIVE_DIM, prompt_dim=8, max_steps=steps, num_tasks=3)
        )
        return agent(mixed, torch.ones(3, 8)).forward_logits

    assert torch.equal(plan(5)[:2], plan(2))


def test_a_step_re_reads_what_is_believed(start_recursive, mixed):
    certain = no_belief(mixed.query)
    certain[0, 1, 1, 7] = 1.0
    assert changed(start_recursive()(no_belief(mixed.query)), start_recursive()(certain)) == [
        True,
        False,
        False,
    ]


def test_a_trajectory_starts_at_zero_and_each_step_continues_from_the_state_before(start_recursive, agent, mixed):
    given = []
    agent.core.block.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    trajectory = start_recursive()
    first, second = trajectory(no_belief(mixed.query)), trajectory(no_belief(mixed.query))
    assert changed(first, second) == [True, True, True]
    assert not given[0].any()
    assert torch.equal(given[1], first)


def test_one_step_reaches_every_cell_of_the_working_area(start_recursive, mixed):
    start_belief = no_belief(mixed.query).requires_grad_()
    state = start_recursive()(start_belief)
    state[1, 0, 0].cos().sum().backward()
    reached = start_belief.grad.abs().sum(-1) > 0
    assert reached[1, 0, :8].any()  # its row, its column, and cells of neither
    assert reached[1, :4, 0].any()
    assert reached[1, 2:4, 2:8].any()
    assert not reached[1, 4:].any()  # beyond the working area of 4 x 8
    assert not reached[[0, 2]].any()


def test_no_cell_beyond_the_working_area_is_read(start_recursive, mixed):
    beyond = no_belief(mixed.query)
    beyond[0, 3:, :, 5] = 1.0
    beyond[0, :, 3:, 5] = 1.0
    trajectory, other = start_recursive(), start_recursive()
    for _ in range(2):
        state, other_state = trajectory(no_belief(mixed.query)), other(beyond)
    assert torch.equal(state[0, :3, :3], other_state[0, :3, :3])


def test_the_grid_its_place_and_its_size_are_seen(start_recursive, mixed):
    first = start_recursive()(no_belief(mixed.query))
    recolored = mixed.query.clone()
    recolored[0, 0, 0] = (recolored[0, 0, 0] + 1) % 10
    assert changed(first, start_recursive(replace(mixed, query=recolored))(no_belief(mixed.query))) == [
        True,
        False,
        False,
    ]
    size = mixed.query_size.clone()
    size[1, 0] += 1
    size[2, 1] += 1
    assert changed(first, start_recursive(size=size)(no_belief(mixed.query))) == [False, True, True]


def test_equal_cells_are_told_apart_by_their_place(start_recursive, mixed):
    flat = replace(mixed, query=torch.where(mixed.query >= 0, 3, -1))
    state = start_recursive(flat)(no_belief(mixed.query))[1, :4, :8].flatten(0, 1)
    distances = torch.cdist(state, state) + torch.eye(len(state))
    assert distances.min() > 1e-3


def test_the_conditioning_modulates_each_query_on_its_own(start_recursive, mixed):
    conditioning = torch.zeros(3, RECURSIVE_DIM)
    conditioning[2] = 1.0
    first, second = (
        start_recursive()(no_belief(mixed.query)),
        start_recursive(conditioning=conditioning)(no_belief(mixed.query)),
    )
    assert changed(first, second) == [False, False, True]


def test_the_context_is_attended_to(agent, start_recursive, mixed):
    outputs = mixed.context_outputs.clone()
    outputs[1, 2, 0, 0] = (outputs[1, 2, 0, 0] + 1) % 10
    other = start_recursive(replace(mixed, context_outputs=outputs))
    # By attention alone: the context's summary goes into the conditioning, which is the same here.
    assert changed(start_recursive()(no_belief(mixed.query)), other(no_belief(mixed.query))) == [
        False,
        True,
        False,
    ]


def test_a_trajectory_leaves_the_core_alone(start_recursive, mixed):
    before = start_recursive()(no_belief(mixed.query))
    assert torch.equal(start_recursive()(no_belief(mixed.query)), before)


@pytest.fixture
def attention(shaken):
    torch.manual_seed(0)
    return shaken(CellAttention(64))


def everywhere(height, width):
    return torch.ones(1, 1, 1, height * width, dtype=torch.bool)


def test_heads_are_as_wide_as_leaves_four():
    assert {width: CellAttention(width).head_dim for width in (16, 64, 96, 128, 256, 320, 512)} == {
        16: 16,
        64: 16,
        96: 16,
        128: 32,
        256: 64,
        320: 64,
        512: 64,
    }


def test_attention_by_a_slow_loop(attention):
    cells = torch.randn(1, 2, 3, 64)
    query, key, value = attention.to_query_key_value(cells).chunk(3, dim=-1)

    def turned(vector, row, column):
        """Components 0 to 7 of a head are the first of each pair, 8 to 15 the second; 4 pairs turn by the row."""
        vector = vector / vector.square().mean().sqrt()
        result = torch.empty(16)
        for pair in range(8):
            angle = torch.tensor((row if pair < 4 else column) * 100.0 ** (-(pair % 4) / 4))
            first, second = vector[pair], vector[pair + 8]
            result[pair] = first * angle.cos() - second * angle.sin()
            result[pair + 8] = first * angle.sin() + second * angle.cos()
        return result

    places = [(row, column) for row in range(2) for column in range(3)]
    slow = torch.zeros(2, 3, 64)
    for head in range(4):
        of_head = slice(16 * head, 16 * head + 16)
        for row, column in places:
            asked = turned(query[0, row, column, of_head], row, column)
            scores = torch.stack([asked @ turned(key[0, r, c, of_head], r, c) / 4.0 for r, c in places])
            read = torch.stack([value[0, r, c, of_head] for r, c in places])
            slow[row, column, of_head] = scores.softmax(0) @ read
    torch.testing.assert_close(attention(cells, everywhere(2, 3))[0], attention.out(slow), rtol=1e-4, atol=1e-5)


def test_attention_depends_on_the_differences_of_places_alone():
    places = torch.randn(2, 1, 1, 16).expand(-1, 8, 9, -1)
    query, key = rotated(*places, *rotations(8, 9, 16, torch.device("cpu")))

    def score(asking, asked):
        return query[asking] @ key[asked]

    torch.testing.assert_close(score((1, 2), (4, 7)), score((4, 3), (7, 8)))
    assert abs(score((1, 2), (4, 7)) - score((4, 7), (1, 2))) > 1e-3
    assert abs(score((1, 2), (1, 3)) - score((1, 2), (2, 2))) > 1e-3


def test_attention_reads_no_cell_beyond_the_working_area(attention):
    cells, area = torch.randn(1, 3, 3, 64), everywhere(3, 3).clone()
    area[..., 4] = False
    changed_cells = cells.clone()
    changed_cells[0, 1, 1] += 1.0
    first, second = attention(cells, area)[0], attention(changed_cells, area)[0]
    others = torch.tensor([place for place in range(9) if place != 4])
    assert torch.equal(first.flatten(0, 1)[others], second.flatten(0, 1)[others])
    assert not torch.equal(attention(cells, everywhere(3, 3))[0, 0, 0], first[0, 0])
