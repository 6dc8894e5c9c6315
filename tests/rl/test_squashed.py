import math

import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, SigmoidTransform, TanhTransform

from arcdist.rl.squashed import SquashedGaussian


def test_log_prob_equals_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    policy = SquashedGaussian(mean=mean, std=(0.3 * log_std).exp(), delta_scale=0.2)
    action = policy.at(noise)
    delta, alpha = policy.squash(action)

    of_delta = TransformedDistribution(
        Normal(mean[:, :4], policy.std[:, :4]), [TanhTransform(), AffineTransform(0.0, 0.2)]
    )
    of_alpha = TransformedDistribution(Normal(mean[:, 4:], policy.std[:, 4:]), [SigmoidTransform()])
    expected = of_delta.log_prob(delta).sum(dim=-1) + of_alpha.log_prob(alpha).sum(dim=-1)
    torch.testing.assert_close(policy.log_prob(action), expected, rtol=1e-9, atol=1e-9)


def test_log_prob_by_hand() -> None:
    policy = SquashedGaussian(mean=torch.zeros(1, 2), std=torch.ones(1, 2), delta_scale=0.2)
    # At u = v = 0 the squashing has slopes 0.2 and 1/4.
    expected = 2 * -0.5 * math.log(2 * math.pi) - math.log(0.2) - math.log(0.25)
    assert policy.log_prob(torch.zeros(1, 2)).item() == pytest.approx(expected, rel=1e-6)


def test_density_integrates_to_one() -> None:
    policy = SquashedGaussian(mean=torch.tensor([[0.4, -0.3]]), std=torch.tensor([[0.7, 0.5]]), delta_scale=0.2)
    grid = torch.linspace(-8, 8, 400)
    actions = torch.cartesian_prod(grid, grid)
    everywhere = SquashedGaussian(
        mean=policy.mean.expand_as(actions), std=policy.std.expand_as(actions), delta_scale=0.2
    )
    delta, alpha = everywhere.squash(actions)
    # In (Delta, alpha) the mass is density x area; the area of a cell is du dv times the slopes there.
    slopes = 0.2 * (1 - (delta / 0.2) ** 2) * alpha * (1 - alpha)
    mass = (everywhere.log_prob(actions).exp() * slopes[:, 0]).sum() * (grid[1] - grid[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_finite_where_it_saturates() -> None:
    mean = torch.tensor([[30.0, -30.0, 40.0]], requires_grad=True)
    policy = SquashedGaussian(mean=mean, std=torch.ones(1, 3), delta_scale=0.2)
    action = torch.tensor([[31.0, -32.0, 41.0]])
    policy.log_prob(action).sum().backward()
    assert policy.log_prob(action).isfinite().all()
    assert mean.grad is not None
    assert mean.grad.tolist() == [[1.0, -2.0, 1.0]]


def test_entropy_is_the_mean_negative_log_prob() -> None:
    policy = SquashedGaussian(
        mean=torch.tensor([[0.5, -0.5, 1.0]]).expand(50_000, 3), std=torch.full((50_000, 3), 0.6), delta_scale=0.2
    )
    noise = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0))
    entropy = policy.entropy(noise).mean()
    assert entropy.item() == pytest.approx(-policy.log_prob(policy.at(noise)).mean().item(), abs=0.02)


def test_entropy_does_not_reward_an_ever_larger_std() -> None:
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    entropies = [
        SquashedGaussian(mean=torch.zeros(20_000, 2), std=torch.full((20_000, 2), std), delta_scale=0.2)
        .entropy(noise)
        .mean()
        .item()
        for std in (0.1, 0.9, 5.0)
    ]
    assert entropies[1] > entropies[0]
    assert entropies[1] > entropies[2]
