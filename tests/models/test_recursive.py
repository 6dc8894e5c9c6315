"""The recursive core: weight-shared steps, positions from both ends, global mixing, attention to the context."""

from dataclasses import replace

import pytest
import torch

from arcdist.models import ARCPromptGuidedAgent
from arcdist.models.context import one_hot_colors

D = 16


@pytest.fixture
def agent(shaken):
    torch.manual_seed(0)
    return shaken(ARCPromptGuidedAgent("recursive", hidden_dim=D, prompt_dim=8, max_steps=2))


@pytest.fixture
def start(agent, mixed):
    """Starts a trajectory of the first query's core: a 3 x 3 grid, seen as one of `size` on its working area."""

    def begin(inputs=mixed, size=None, condition=None):
        height, width = inputs.query.shape[1:]
        rows = torch.arange(height)[:, None] < inputs.working_area[:, 0, None, None]
        area = rows & (torch.arange(width) < inputs.working_area[:, 1, None, None])
        return agent.core.start(
            one_hot_colors(inputs.query, 10),
            inputs.query_size if size is None else size,
            torch.zeros(len(inputs.query), D) if condition is None else condition,
            agent.read_context(inputs),
            area,
        )

    return begin


def belief(inputs):
    return torch.zeros(*inputs.query.shape, 10)


def changed(first, second):
    """Which queries' states differ anywhere in the 3 x 3 cells that all of them have."""
    return [bool((a - b).abs()[:3, :3].max() > 1e-3) for a, b in zip(first, second, strict=True)]


def test_steps_share_their_weights():
    shallow, deep = (ARCPromptGuidedAgent("recursive", hidden_dim=D, prompt_dim=8, max_steps=steps) for steps in (1, 9))
    assert {name: value.shape for name, value in shallow.state_dict().items()} == {
        name: value.shape for name, value in deep.state_dict().items()
    }


def test_more_steps_go_on_from_fewer(mixed, shaken):
    def plan(steps):
        torch.manual_seed(0)
        agent = shaken(ARCPromptGuidedAgent("recursive", hidden_dim=D, prompt_dim=8, max_steps=steps, num_tasks=3))
        return agent(mixed, torch.ones(3, 8)).forward_logits

    assert torch.equal(plan(5)[:2], plan(2))


def test_a_step_re_reads_what_is_believed(start, mixed):
    certain = belief(mixed)
    certain[0, 1, 1, 7] = 1.0
    assert changed(start().step(belief(mixed)), start().step(certain)) == [True, False, False]


def test_a_step_goes_on_from_the_state_before(start, mixed):
    trajectory = start()
    first, second = trajectory.step(belief(mixed)).clone(), trajectory.step(belief(mixed))
    assert changed(first, second) == [True, True, True]
    assert torch.equal(second, trajectory.state)


def test_one_step_reaches_every_cell_of_the_working_area(start, mixed):
    start_belief = belief(mixed).requires_grad_()
    state = start().step(start_belief)
    state[1, 0, 0].cos().sum().backward()
    reached = start_belief.grad.abs().sum(-1) > 0
    assert reached[1, 0, :8].any()  # its row, its column, and cells of neither
    assert reached[1, :4, 0].any()
    assert reached[1, 2:4, 2:8].any()
    assert not reached[1, 4:].any()  # beyond the working area of 4 x 8
    assert not reached[[0, 2]].any()


def test_no_cell_beyond_the_working_area_is_read(start, mixed):
    beyond = belief(mixed)
    beyond[0, 3:, :, 5] = 1.0
    beyond[0, :, 3:, 5] = 1.0
    trajectory, other = start(), start()
    for _ in range(2):
        state, other_state = trajectory.step(belief(mixed)), other.step(beyond)
    assert torch.equal(state[0, :3, :3], other_state[0, :3, :3])


def test_the_grid_its_place_and_its_size_are_seen(start, mixed):
    first = start().step(belief(mixed))
    recolored = mixed.query.clone()
    recolored[0, 0, 0] = (recolored[0, 0, 0] + 1) % 10
    assert changed(first, start(replace(mixed, query=recolored)).step(belief(mixed))) == [True, False, False]
    size = mixed.query_size.clone()
    size[1, 0] += 1
    size[2, 1] += 1
    assert changed(first, start(size=size).step(belief(mixed))) == [False, True, True]


def test_equal_cells_are_told_apart_by_their_place(start, mixed):
    flat = replace(mixed, query=torch.where(mixed.query >= 0, 3, -1))
    state = start(flat).step(belief(mixed))[1, :4, :8].flatten(0, 1)
    distances = torch.cdist(state, state) + torch.eye(len(state))
    assert distances.min() > 1e-3


def test_the_condition_modulates_each_query_on_its_own(start, mixed):
    condition = torch.zeros(3, D)
    condition[2] = 1.0
    first, second = start().step(belief(mixed)), start(condition=condition).step(belief(mixed))
    assert changed(first, second) == [False, False, True]


def test_the_context_is_attended_to(agent, start, mixed):
    outputs = mixed.context_outputs.clone()
    outputs[1, 2, 0, 0] = (outputs[1, 2, 0, 0] + 1) % 10
    other = start(replace(mixed, context_outputs=outputs))
    # By attention alone: the context's summary goes into the condition, which is the same here.
    assert changed(start().step(belief(mixed)), other.step(belief(mixed))) == [False, True, False]


def test_a_fresh_trajectory_starts_at_zero_and_leaves_the_core_alone(start, mixed):
    trajectory = start()
    assert not trajectory.state.any()
    before = trajectory.step(belief(mixed)).clone()
    assert torch.equal(start().step(belief(mixed)), before)
