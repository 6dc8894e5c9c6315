"""The scores of an answer, the reward of a refinement, and the advantages over all processes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arcdist.rl import Answer, RewardTotals, advantages, residuals, score_answers, shaping_reward

# Two queries: a 2 x 2 target in a 2 x 3 canvas and a 1 x 3 one; inputs of 1 x 2 and 2 x 2.
TARGET = torch.tensor([[[1, 2, -1], [3, 3, -1]], [[5, 5, 5], [-1, -1, -1]]])
INPUT = torch.tensor([[[4, 4], [-1, -1]], [[1, 2], [3, 4]]])


def answer(grid: list[list[list[int]]], size: list[list[int]], reconstruction: list[list[list[int]]]) -> Answer:
    return Answer(grid=torch.tensor(grid), size=torch.tensor(size), reconstruction=torch.tensor(reconstruction))


BEFORE = answer(
    [[[2, 1, 9], [3, 0, 9]], [[0, 0, 0], [5, 5, 5]]], [[2, 3], [3, 9]], [[[4, 0], [4, 4]], [[1, 0], [0, 0]]]
)
AFTER = answer(
    [[[1, 2, 0], [3, 3, 0]], [[5, -1, 0], [0, 0, 0]]], [[2, 2], [1, 3]], [[[4, 4], [0, 0]], [[1, 2], [0, 0]]]
)


def test_scores_by_hand() -> None:
    before, after = score_answers(BEFORE, TARGET, INPUT), score_answers(AFTER, TARGET, INPUT)
    assert before.acc.tolist() == pytest.approx([1 / 4, 0.0])
    # Sides 2 and 3 for 2 and 2: errors 0 and 1/2. Sides 3 and 9 for 1 and 3: errors 2 and 2, floored at 0.
    assert before.size.tolist() == pytest.approx([0.75, 0.0])
    # Colours 1, 2, 3, 0 for 1, 2, 3, 3 share three quarters; 0, 0, 0 for 5, 5, 5 share nothing.
    assert before.color.tolist() == pytest.approx([0.75, 0.0])
    assert before.rev.tolist() == pytest.approx([0.5, 0.25])
    assert after.acc.tolist() == pytest.approx([1.0, 1 / 3])
    assert after.size.tolist() == [1.0, 1.0]
    assert after.color.tolist() == pytest.approx([1.0, 1 / 3])
    assert after.rev.tolist() == pytest.approx([1.0, 0.5])


def test_reward_by_hand() -> None:
    rewards = shaping_reward(BEFORE, AFTER, TARGET, INPUT)
    assert rewards.d_acc.tolist() == pytest.approx([0.75, 1 / 3])
    assert rewards.d_size.tolist() == pytest.approx([0.25, 1.0])
    assert rewards.d_color.tolist() == pytest.approx([0.25, 1 / 3])
    assert rewards.d_rev.tolist() == pytest.approx([0.5, 0.25])
    assert rewards.reward.tolist() == pytest.approx([5 * 1.25, 5 * (1 / 3 + 0.5 * (1 + 1 / 3 + 0.25))])


@pytest.mark.parametrize(
    ("change", "reward"),
    [
        ({"size": AFTER.size}, 0.5 * torch.tensor([0.25, 1.0])),
        ({"reconstruction": AFTER.reconstruction}, 0.5 * torch.tensor([0.5, 0.25])),
        # Two cells of the first answer trade places.
        ({"grid": torch.tensor([[[1, 2, 9], [3, 0, 9]], [[0, 0, 0], [5, 5, 5]]])}, torch.tensor([0.5, 0.0])),
        # One right cell more, and its colour.
        ({"grid": torch.tensor([[[2, 1, 9], [3, 3, 9]], [[0, 5, 0], [5, 5, 5]]])}, torch.tensor([0.375, 0.5])),
    ],
    ids=["size", "reconstruction", "cells", "cells and colours"],
)
def test_weights_of_the_four_improvements(change: dict[str, Tensor], reward: Tensor) -> None:
    rewards = shaping_reward(BEFORE, replace(BEFORE, **change), TARGET, INPUT, reward_scale=2.0)
    torch.testing.assert_close(rewards.reward, 2.0 * reward)


def test_no_change_no_reward() -> None:
    assert shaping_reward(BEFORE, BEFORE, TARGET, INPUT).reward.tolist() == [0.0, 0.0]


def test_padding_and_batch_composition_change_nothing() -> None:
    def pad(grid: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(grid[:1], (0, 3, 0, 4), value=value)

    wide = [
        Answer(grid=pad(a.grid, 5), size=a.size[:1], reconstruction=pad(a.reconstruction, 5)) for a in (BEFORE, AFTER)
    ]
    alone = shaping_reward(*wide, pad(TARGET, -1), pad(INPUT, -1))
    assert alone.reward.item() == pytest.approx(5 * 1.25)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_scores_are_shares_and_1_only_for_the_right_answer(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    cells = st.lists(st.integers(0, 9), min_size=16, max_size=16)
    target = torch.full((1, 4, 4), -1)
    target[:, :height, :width] = torch.tensor(data.draw(cells)).reshape(1, 4, 4)[:, :height, :width]
    grid = torch.tensor(data.draw(cells)).reshape(1, 4, 4)
    size = torch.tensor([[data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))]])
    scores = score_answers(Answer(grid=grid, size=size, reconstruction=grid), target, target)
    for share in (scores.acc, scores.size, scores.color, scores.rev):
        assert 0.0 <= share.item() <= 1.0 + 1e-6
    assert (scores.size.item() == 1.0) == (size.tolist() == [[height, width]])
    assert (scores.acc.item() == 1.0) == torch.equal(grid[target >= 0], target[target >= 0])
    assert scores.color.item() >= scores.acc.item() - 1e-6


def test_answers_are_split_and_joined_in_their_order() -> None:
    joined = Answer.joined([BEFORE, AFTER, BEFORE])
    assert joined.size.tolist() == [[2, 3], [3, 9], [2, 2], [1, 3], [2, 3], [3, 9]]
    for part, expected in zip(joined.split(3), (BEFORE, AFTER, BEFORE), strict=True):
        assert torch.equal(part.grid, expected.grid)
        assert torch.equal(part.size, expected.size)
        assert torch.equal(part.reconstruction, expected.reconstruction)
    none = Answer(grid=BEFORE.grid[:0], size=BEFORE.size[:0], reconstruction=BEFORE.reconstruction[:0])
    assert [len(part.grid) for part in none.split(3)] == [0, 0, 0]


def totals(reward: Tensor) -> RewardTotals:
    """Of rewards [B], or of K draws for each query [K, B]."""
    draws = reward if reward.dim() == 2 else reward[None]
    sums = (reward.sum(), reward.square().sum(), residuals(draws).square().sum())
    return RewardTotals(torch.tensor(float(draws.shape[1])), *(each / len(draws) for each in sums))


def test_mean_and_variance_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.5])
    assert totals(rewards).mean.item() == pytest.approx(1.7)
    assert totals(rewards).variance.item() == pytest.approx(rewards.var(correction=0).item(), rel=1e-5)


def test_advantages_by_hand() -> None:
    reward = torch.tensor([1.0, 2.0, 3.0])
    assert advantages(reward, totals(reward).mean, totals(reward).variance).tolist() == pytest.approx(
        [-1.224744, 0.0, 1.224744], abs=1e-5
    )


def test_equal_rewards_have_no_advantage() -> None:
    reward = torch.full((7,), 0.1)
    assert advantages(reward, totals(reward).mean, totals(reward).variance).abs().max().item() < 1e-4


def test_one_draw_is_compared_with_the_rewards_of_all_queries() -> None:
    reward = torch.tensor([1.0, 2.0, 6.0])
    of_all = totals(reward)
    assert torch.equal(of_all.advantages(reward[None])[0], advantages(reward, of_all.mean, of_all.variance))
    assert of_all.squared_residual.item() == 0.0


def test_several_draws_are_compared_with_those_of_their_own_query() -> None:
    reward = torch.tensor([[1.0, 50.0, 0.1], [4.0, 50.0, 0.1], [1.0, 56.0, 0.1]])
    of_all = totals(reward)
    assert of_all.mean.item() == pytest.approx(reward.mean().item())
    assert of_all.variance.item() == pytest.approx(reward.var(correction=0).item(), rel=1e-5)
    # Residuals -1, 2, -1 and -2, -2, 4 and zeros: 30 over the 9 draws.
    expected = torch.tensor([[-1.0, -2.0, 0.0], [2.0, -2.0, 0.0], [-1.0, 4.0, 0.0]]) / (30 / 9) ** 0.5
    found = of_all.advantages(reward)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert found[:, 2].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("draws", [2, 3, 7])
def test_equal_draws_have_no_advantage_to_the_last_bit(draws: int) -> None:
    reward = torch.tensor([0.1, -0.7, 3.3]).expand(draws, -1)
    assert totals(reward).advantages(reward).tolist() == [[0.0] * 3] * draws
