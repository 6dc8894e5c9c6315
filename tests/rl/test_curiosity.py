import pytest
import torch
from torch import Tensor

from arcdist.rl.curiosity import IntrinsicCuriosity


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
