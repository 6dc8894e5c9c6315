import math

import pytest
import torch

from arcdist.losses import combined_loss, hard_cell_weight, policy_gradient, size_loss


def test_value_by_hand() -> None:
    loss = combined_loss(torch.tensor(2.0), torch.tensor(0.5))
    assert loss.item() == pytest.approx(0.7 * 2.0 - 0.3 * 0.5)
    assert combined_loss(torch.tensor(2.0), torch.tensor(0.5), 0.25, 4.0).item() == pytest.approx(0.5 - 2.0)


def test_policy_gradient_by_hand() -> None:
    gradient = policy_gradient(
        torch.tensor([[1.0, 0.0], [2.0, -3.0], [5.0, 5.0]]),
        torch.tensor([1.0, -2.0, 7.0]),
        torch.tensor([0.25, 0.75, 0.0]),
    )
    torch.testing.assert_close(gradient, -0.3 * torch.tensor([[0.25, 0.0], [-3.0, 4.5], [0.0, 0.0]]))


def test_it_is_the_gradient_of_the_surrogate_beside_that_of_the_energy() -> None:
    """What autograd makes of efe_weight x energy - reward_weight x sum_b w_b advantage_b log_prob_b, in two parts."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randn(3, 4, generator=generator, requires_grad=True)
    action = torch.randn(3, 4, generator=generator)
    reward = torch.randn(3, generator=generator)
    weight = torch.tensor([0.5, 0.2, 0.3])
    advantage = (reward - reward.mean()) / reward.std()

    def energy() -> torch.Tensor:
        return (weight * prompt.sin().prod(dim=1)).sum()

    def log_prob() -> torch.Tensor:
        return -0.5 * (action - prompt.tanh()).square().sum(dim=1)

    (joint,) = torch.autograd.grad(0.6 * energy() - 0.4 * (weight * advantage * log_prob()).sum(), prompt)
    value = combined_loss(energy(), reward.mean(), 0.6, 0.4)
    (by_energy,) = torch.autograd.grad(value, prompt)
    (score,) = torch.autograd.grad(log_prob().sum(), prompt)
    by_reward = policy_gradient(score, advantage, weight, 0.4)
    assert by_energy.abs().min() > 0
    assert by_reward.abs().min() > 0
    torch.testing.assert_close(by_energy + by_reward, joint)


def test_it_is_the_gradient_of_the_expected_reward() -> None:
    """A Gaussian with mean m and reward (action): d E[reward] / dm = 1."""
    queries = 200_000
    mean = torch.full((queries, 1), 0.3, requires_grad=True)
    action = (mean + torch.randn(queries, 1, generator=torch.Generator().manual_seed(0))).detach()
    (score,) = torch.autograd.grad((-0.5 * (action - mean) ** 2).sum(), mean)
    reward = action[:, 0]
    gradient = policy_gradient(score, reward - reward.mean(), torch.full((queries,), 1 / queries), 1.0)
    assert gradient.sum().item() == pytest.approx(-1.0, abs=0.02)


def test_whatever_is_added_to_all_rewards_changes_nothing() -> None:
    score, weight = torch.tensor([[1.0], [-2.0]]), torch.tensor([0.5, 0.5])
    reward = torch.tensor([0.25, 0.75])
    one, other = (policy_gradient(score, each - each.mean(), weight) for each in (reward, reward + 8.0))
    assert torch.equal(one, other)


def test_hard_cell_weight() -> None:
    assert hard_cell_weight(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.5, 0.75, 1.0]


def test_size_loss_by_hand() -> None:
    height = torch.zeros(2, 30)
    width = torch.zeros(2, 30)
    width[0, 4] = math.log(29.0)
    loss = size_loss((height, width), torch.tensor([[1, 5], [30, 2]]))
    assert loss.tolist() == pytest.approx([math.log(30.0) + math.log(2.0), 2 * math.log(30.0)])
