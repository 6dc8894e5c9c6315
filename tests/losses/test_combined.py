import math

import pytest
import torch

from arcdist.losses import combined_loss, hard_cell_weight, size_loss


def test_value_and_surrogate_by_hand() -> None:
    loss = combined_loss(torch.tensor(2.0), torch.tensor(0.5), torch.tensor([-1.0, -3.0]), torch.tensor([1.0, -1.0]))
    assert loss.value.item() == pytest.approx(0.7 * 2.0 - 0.3 * 0.5)
    assert loss.surrogate.item() == pytest.approx(0.7 * 2.0 - 0.3 * (1.0 * -1.0 + -1.0 * -3.0) / 2)


def test_surrogate_with_query_weights() -> None:
    loss = combined_loss(
        torch.tensor(0.0),
        torch.tensor(0.0),
        torch.tensor([-1.0, -3.0]),
        torch.tensor([1.0, -1.0]),
        query_weight=torch.tensor([0.25, 0.75]),
    )
    assert loss.surrogate.item() == pytest.approx(-0.3 * (0.25 * -1.0 + 0.75 * 3.0))


def test_only_the_surrogate_is_differentiated_and_the_advantage_is_a_constant() -> None:
    efe = torch.tensor(2.0, requires_grad=True)
    log_prob = torch.tensor([-1.0, -3.0], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0], requires_grad=True)
    loss = combined_loss(efe, torch.tensor(0.5), log_prob, advantage)
    assert not loss.value.requires_grad
    loss.surrogate.backward()
    assert efe.grad is not None
    assert efe.grad.item() == pytest.approx(0.7)
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx([-0.15, 0.15])
    assert advantage.grad is None


def test_surrogate_gradient_is_the_gradient_of_the_expected_reward() -> None:
    """A Gaussian with mean m and reward (action): d E[reward] / dm = 1."""
    mean = torch.tensor(0.3, requires_grad=True)
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    action = (mean + noise).detach()
    log_prob = -0.5 * (action - mean) ** 2
    combined_loss(torch.tensor(0.0), action.mean(), log_prob, action - action.mean(), 0.7, 1.0).surrogate.backward()
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(-1.0, abs=0.02)


def test_hard_cell_weight() -> None:
    assert hard_cell_weight(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.5, 0.75, 1.0]


def test_size_loss_by_hand() -> None:
    height = torch.zeros(2, 30)
    width = torch.zeros(2, 30)
    width[0, 4] = math.log(29.0)
    loss = size_loss((height, width), torch.tensor([[1, 5], [30, 2]]))
    assert loss.tolist() == pytest.approx([math.log(30.0) + math.log(2.0), 2 * math.log(30.0)])
