"""The policy's distribution, curiosity, and the refiner that learns from both."""

import inspect
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, SigmoidTransform, TanhTransform

from arcdist.config.schema import RefinerConfig
from arcdist.rl import PolicyRefinedAgent, Transition
from arcdist.rl.refiner import IntrinsicCuriosity, SquashedGaussian


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


@pytest.fixture
def curiosity() -> IntrinsicCuriosity:
    torch.manual_seed(0)
    return IntrinsicCuriosity(state_dim=6, action_dim=3, feature_dim=8, hidden_dim=32)


def transitions(queries: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random states, what an action makes of them, and the action."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(queries, 6, generator=generator)
    action = torch.rand(queries, 3, generator=generator) * 2 - 1
    return state, state + torch.cat([action, action.flip(-1)], dim=-1), action


def test_loss_and_bonus_are_those_of_the_paper(curiosity: IntrinsicCuriosity) -> None:
    state, next_state, action = transitions(4, seed=1)
    result = curiosity(state, next_state, action)
    for b in range(4):
        here, there = curiosity.encoder(state[b]), curiosity.encoder(next_state[b])
        inverse = (curiosity.inverse_model(torch.cat([here, there])) - action[b]).pow(2).mean()
        error = (here + curiosity.forward_model(torch.cat([here, action[b]])) - there).pow(2).mean()
        change = (there - here).pow(2).mean()
        assert result.loss[b].item() == pytest.approx((0.8 * inverse + 0.2 * error).item(), rel=1e-5)
        assert result.bonus[b].item() == pytest.approx((error / (error + change)).item(), rel=1e-5)


def test_the_encoder_learns_from_the_inverse_model_only(curiosity: IntrinsicCuriosity) -> None:
    result = curiosity(*transitions(4, seed=1))
    assert not result.bonus.requires_grad
    with torch.no_grad():
        for parameter in curiosity.inverse_model.parameters():
            parameter.zero_()
    curiosity(*transitions(4, seed=1)).loss.sum().backward()
    assert all(parameter.grad.any() for parameter in curiosity.forward_model.parameters())
    # With a constant inverse model nothing is left that could reach the encoder.
    assert not any(parameter.grad.any() for parameter in curiosity.encoder.parameters())


def test_a_model_that_foresees_no_change_has_bonus_one_half_and_no_change_none(curiosity: IntrinsicCuriosity) -> None:
    with torch.no_grad():
        for parameter in curiosity.forward_model.parameters():
            parameter.zero_()
    state, next_state, action = transitions(4, seed=1)
    torch.testing.assert_close(curiosity(state, next_state, action).bonus, torch.full((4,), 0.5))
    assert curiosity(state, state, action).bonus.tolist() == [0.0] * 4


def test_what_is_learned_is_no_longer_curious(curiosity: IntrinsicCuriosity) -> None:
    optimizer = torch.optim.Adam(curiosity.parameters(), lr=1e-2)
    before = curiosity(*transitions(64, seed=1000))
    for seed in range(80):
        loss = curiosity(*transitions(64, seed)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = curiosity(*transitions(64, seed=1000))
    assert after.loss.mean().item() < 0.3 * before.loss.mean().item()
    assert after.bonus.mean().item() < 0.7 * before.bonus.mean().item()
    assert after.bonus.min().item() >= 0.0
    assert after.bonus.max().item() <= 1.0


def small_refiner(**options: float) -> PolicyRefinedAgent:
    torch.manual_seed(0)
    return PolicyRefinedAgent(rl_prompt_dim=4, rl_ctrl_dim=3, rl_feat_dim=2, rl_hidden=16, **options)


def trained_refiner(**options: float) -> PolicyRefinedAgent:
    """A refiner whose heads are away from zero, so that its policy depends on the state."""
    refiner = small_refiner(**options)
    with torch.no_grad():
        for head in (refiner.mean_head, refiner.log_std_head, refiner.value_head):
            head.weight.normal_(0.0, 0.3)
    return refiner


def states(queries: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(queries, width, generator=generator) for width in (4, 3, 2))


def draw(queries: int = 3, seed: int = 2) -> Tensor:
    return torch.randn(queries, 5, generator=torch.Generator().manual_seed(seed))


def test_refined_is_the_mixture_of_prompt_and_edited_prompt() -> None:
    prompt, control, summary = states()
    refinement = trained_refiner().refine_prompt(prompt, control, summary, noise=draw())
    delta, alpha = refinement.delta, refinement.alpha
    torch.testing.assert_close(refinement.refined, (1 - alpha) * prompt + alpha * (prompt + delta))
    assert delta.abs().max().item() < 0.2
    assert 0.0 < alpha.min().item() < alpha.max().item() < 1.0


def test_an_untrained_policy_is_centred_and_moderate() -> None:
    refinement = small_refiner().refine_prompt(*states(), deterministic=True)
    assert not refinement.delta.any()
    assert refinement.alpha.flatten().tolist() == [0.5] * 3
    assert torch.equal(refinement.refined, states()[0])
    noisy = small_refiner().refine_prompt(*states(), noise=torch.ones(3, 5))
    std = math.exp(-0.7)
    torch.testing.assert_close(noisy.delta, torch.full((3, 4), 0.2 * math.tanh(std)))
    torch.testing.assert_close(noisy.alpha, torch.full((3, 1), 1 / (1 + math.exp(-std))))


def test_the_action_is_a_constant_and_the_prompt_passes_straight_through() -> None:
    prompt, control, summary = states()
    prompt.requires_grad_()
    refiner = trained_refiner()
    refinement = refiner.refine_prompt(prompt, control, summary, noise=draw())
    outcome = torch.arange(12.0).reshape(3, 4)
    refinement.refined.backward(outcome)
    assert torch.equal(prompt.grad, outcome)
    assert all(parameter.grad is None for parameter in refiner.parameters())


def test_log_prob_reaches_the_policy_and_the_prompt() -> None:
    prompt, control, summary = states()
    prompt.requires_grad_()
    refiner = trained_refiner()
    refiner.refine_prompt(prompt, control, summary, noise=draw()).log_prob.sum().backward()
    assert prompt.grad is not None
    assert prompt.grad.any()
    for module in (refiner.trunk, refiner.mean_head, refiner.log_std_head):
        assert all(parameter.grad.any() for parameter in module.parameters())
    for module in (refiner.value_head, refiner.curiosity):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_log_prob_gradient_equals_finite_differences() -> None:
    refiner = trained_refiner()
    prompt, control, summary = states()
    action = refiner.refine_prompt(prompt, control, summary, noise=draw()).transition.action
    bias = refiner.mean_head.bias

    def log_prob() -> Tensor:
        policy, _ = refiner.policy_and_value(prompt, control, summary)
        return policy.log_prob(action).sum()

    log_prob().backward()
    with torch.no_grad():
        bias[1] += 1e-2
        above = log_prob()
        bias[1] -= 2e-2
        below = log_prob()
    assert bias.grad[1].item() == pytest.approx(((above - below) / 2e-2).item(), rel=1e-3)


def test_the_same_noise_gives_the_same_refinement_whatever_the_batch() -> None:
    refiner, (prompt, control, summary), noise = trained_refiner(), states(), draw()
    together = refiner.refine_prompt(prompt, control, summary, noise=noise)
    alone = refiner.refine_prompt(prompt[1:2], control[1:2], summary[1:2], noise=noise[1:2])
    torch.testing.assert_close(alone.refined, together.refined[1:2])
    torch.testing.assert_close(alone.log_prob, together.log_prob[1:2])


def test_noise_and_deterministic_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="choose one of them"):
        small_refiner().refine_prompt(*states(), noise=draw(), deterministic=True)


def test_float32_under_autocast() -> None:
    refiner, (prompt, control, summary), noise = trained_refiner(), states(), draw()
    expected = refiner.refine_prompt(prompt, control, summary, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refinement = refiner.refine_prompt(prompt, control, summary, noise=noise)
    assert torch.equal(refinement.refined, expected.refined)
    assert torch.equal(refinement.log_prob, expected.log_prob)


def test_rl_loss_by_hand() -> None:
    refiner = trained_refiner(rl_entropy_coef=0.03, rl_value_coef=0.7, rl_icm_coef=0.2)
    refinement = refiner.refine_prompt(*states(), noise=draw())
    transition = refinement.transition
    advantage, weight = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 0.25, 0.25])
    losses = refiner.rl_loss(transition, advantage, query_weight=weight)

    policy, value = refiner.policy_and_value(*states())
    curiosity = refiner.curiosity(
        torch.cat([transition.prompt, transition.summary], dim=-1),
        torch.cat([transition.refined, transition.summary], dim=-1),
        torch.cat([refinement.delta / 0.2, refinement.alpha], dim=-1),
    )
    returns = advantage + 0.2 * curiosity.bonus
    torch.testing.assert_close(losses["policy"], -(weight * (returns - value) * refinement.log_prob).sum())
    torch.testing.assert_close(losses["value"], (weight * (value - returns) ** 2).sum())
    torch.testing.assert_close(losses["entropy"], (weight * policy.entropy(transition.noise)).sum())
    torch.testing.assert_close(losses["icm"], (weight * curiosity.loss).sum())
    total = losses["policy"] + 0.7 * losses["value"] - 0.03 * losses["entropy"] + 0.2 * losses["icm"]
    torch.testing.assert_close(losses["total"], total)


def test_the_path_is_the_derivative_of_a_loss_of_the_refined_prompt() -> None:
    """What autograd makes of a loss if the action is not cut from the policy, in mean and std."""
    refiner = trained_refiner(rl_path_coef=2.0)
    refinement = refiner.refine_prompt(*states(), noise=draw())
    policy, _ = refiner.policy_and_value(*states())
    delta, alpha = policy.squash(policy.at(draw()))
    uncut = states()[0] + alpha * delta
    torch.testing.assert_close(uncut, refinement.refined)
    parameters = [*refiner.mean_head.parameters(), *refiner.log_std_head.parameters()]
    expected = torch.autograd.grad(uncut.sin().sum(), parameters)

    found = refiner.rl_loss(refinement.transition, torch.ones(3), loss_gradient=refinement.refined.cos())
    of_path = torch.autograd.grad(found["path"], parameters, retain_graph=True)
    for one, other in zip(of_path, expected, strict=True):
        torch.testing.assert_close(one, other)
    without = trained_refiner().rl_loss(refinement.transition, torch.ones(3), loss_gradient=refinement.refined.cos())
    assert "path" not in without
    torch.testing.assert_close(found["total"], without["total"] + 2.0 * found["path"])


def test_the_update_shares_no_graph_with_the_main_backward() -> None:
    prompt, control, summary = states()
    prompt.requires_grad_()
    refiner = trained_refiner()
    refinement = refiner.refine_prompt(prompt, control, summary, noise=draw())
    assert not any(getattr(refinement.transition, name).requires_grad for name in Transition.__dataclass_fields__)
    refinement.log_prob.sum().backward()
    before = prompt.grad.clone()
    refiner.rl_loss(refinement.transition, torch.ones(3))["total"].backward()
    assert torch.equal(prompt.grad, before)


def test_rl_loss_reaches_every_parameter() -> None:
    refiner = trained_refiner()
    transition = refiner.refine_prompt(*states(), noise=draw()).transition
    losses = refiner.rl_loss(transition, torch.tensor([1.0, -1.0, 0.3]))
    assert set(losses) == {"policy", "value", "entropy", "icm", "curiosity", "total"}
    losses["total"].backward()
    assert all(parameter.grad.any() for parameter in refiner.parameters())


def test_updates_learn_the_direction_that_is_rewarded() -> None:
    """A bandit: the reward is the way along a direction, or against it where the control says so."""
    refiner = small_refiner()
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=1e-2)
    direction = torch.tensor([1.0, -1.0, 1.0, 0.0])

    def gain(change: Tensor, control: Tensor) -> Tensor:
        return (change @ direction) * control[:, 0].sign()

    for step in range(120):
        prompt, control, summary = states(32, seed=step)
        refinement = refiner.refine_prompt(prompt, control, summary, noise=draw(32, seed=10_000 + step))
        reward = gain(refinement.refined - prompt, control)
        advantage = (reward - reward.mean()) / reward.std()
        optimizer.zero_grad()
        refiner.rl_loss(refinement.transition, advantage)["total"].backward()
        torch.nn.utils.clip_grad_norm_(refiner.parameters(), refiner.rl_grad_clip)
        optimizer.step()

    prompt, control, summary = states(200, seed=5)
    refinement = refiner.refine_prompt(prompt, control, summary, deterministic=True)
    # The most that can be had is 3 components x 0.2, applied whole.
    assert gain(refinement.refined - prompt, control).mean().item() > 0.3


def test_defaults_are_those_of_the_configuration() -> None:
    defaults = inspect.signature(PolicyRefinedAgent).parameters
    config = RefinerConfig()
    keys = RefinerConfig.__dataclass_fields__
    assert {name: defaults[name].default for name in keys} == {name: getattr(config, name) for name in keys}
