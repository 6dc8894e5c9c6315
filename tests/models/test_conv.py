"""The convolutional core: an encoder, prompt fusion and a planning head a step."""

import pytest
import torch

from arcdist.models import ARCPromptGuidedAgent
from arcdist.models.context import one_hot_colors
from arcdist.models.conv import ConvCore

D, T = 12, 3


@pytest.fixture
def core(shaken):
    torch.manual_seed(0)
    return shaken(ConvCore(num_colors=10, hidden_dim=D, condition_dim=4, max_steps=T))


def start(core, grid, condition=None, area=None):
    area = torch.ones_like(grid, dtype=torch.bool) if area is None else area
    condition = torch.zeros(len(grid), 4) if condition is None else condition
    return core.start(one_hot_colors(grid, 10), torch.tensor([[9, 9]] * len(grid)), condition, None, area)


def belief(grid):
    return torch.zeros(*grid.shape, 10)


def test_the_encoder_widens_as_the_seed_s_did():
    core = ConvCore(num_colors=10, hidden_dim=256, condition_dim=256, max_steps=5)
    assert (core.first.out_channels, core.second.out_channels) == (128, 256)
    assert len(core.heads) == 5


def test_step_t_is_read_by_head_t(core):
    grid = torch.zeros(1, 4, 4, dtype=torch.long)
    first = [state for trajectory in [start(core, grid)] for state in [trajectory.step(belief(grid)) for _ in range(T)]]
    with torch.no_grad():
        core.heads[1].bias += 1.0
    trajectory = start(core, grid)
    second = [trajectory.step(belief(grid)) for _ in range(T)]
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, False, True]
    with pytest.raises(IndexError):
        trajectory.step(belief(grid))


def test_a_state_sees_three_cells_in_each_direction(core):
    grid = torch.zeros(1, 9, 9, dtype=torch.long)
    changed = grid.clone()
    changed[0, 4, 4] = 6
    difference = (start(core, grid).step(belief(grid)) - start(core, changed).step(belief(grid))).abs().amax(-1)[0]
    rows, columns = torch.nonzero(difference > 1e-6, as_tuple=True)
    assert (rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()) == (1, 7, 1, 7)


def test_cells_beyond_the_working_area_are_zero_and_unread(core):
    area = torch.zeros(1, 5, 5, dtype=torch.bool)
    area[0, :3, :2] = True
    grid = torch.randint(0, 10, (1, 5, 5), generator=torch.Generator().manual_seed(0))
    other = torch.where(area, grid, (grid + 1) % 10)
    state = start(core, grid, area=area).step(belief(grid))
    assert not state[~area].any()
    assert state[area].abs().max() > 0
    wild = torch.where(area[..., None], 0.0, 5.0).expand(1, 5, 5, 10)
    torch.testing.assert_close(start(core, other, area=area).step(wild), state, rtol=0, atol=1e-6)
    torch.testing.assert_close(start(core, grid[:, :3, :2]).step(belief(grid)[:, :3, :2]), state[:, :3, :2])


def test_condition_and_belief_are_fused(core):
    grid = torch.zeros(2, 3, 3, dtype=torch.long)
    first = start(core, grid).step(belief(grid))
    condition = torch.tensor([[0.0] * 4, [1.0] * 4])
    second = start(core, grid, condition).step(belief(grid))
    assert torch.equal(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-3
    sure = belief(grid)
    sure[0, 1, 1, 5] = 1.0
    third = start(core, grid).step(sure)
    assert (first[0] - third[0]).abs().max() > 1e-3
    assert torch.equal(first[1], third[1])


def test_the_conv_agent_reads_neither_context_nor_sizes(mixed, shaken):
    torch.manual_seed(0)
    agent = shaken(ARCPromptGuidedAgent("conv", hidden_dim=D, prompt_dim=4, max_steps=T))
    assert agent.read_context(mixed) is None
    assert agent.context_encoder is None
    assert agent.task_vectors is None
