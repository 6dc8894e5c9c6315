import pytest
import torch
from torch import nn

from arcdist.training.models import EMA


def linear(value: float) -> nn.Linear:
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(value)
        module.bias.fill_(-value)
    return module


def set_weights(module: nn.Linear, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)
        module.bias.fill_(-value)


def test_by_hand_while_the_decay_grows():
    trained = linear(1.0)
    ema = EMA(trained, decay=0.999)
    set_weights(trained, 12.0)
    ema.update()  # decay 2 / 11
    assert ema.module.weight.item() == pytest.approx(1 * 2 / 11 + 12 * 9 / 11)
    assert ema.module.bias.item() == pytest.approx(-10.0)
    set_weights(trained, 0.0)
    ema.update()  # decay 3 / 12
    assert ema.module.weight.item() == pytest.approx(2.5)
    assert ema.updates == 2
    assert trained.weight.item() == 0.0


def test_by_hand_once_the_decay_is_reached():
    trained = linear(8.0)
    ema = EMA(trained, decay=0.25)
    set_weights(trained, 0.0)
    values = []
    for _ in range(4):
        ema.update()
        values.append(ema.module.weight.item())
    # 2/11 < 0.25 only at the first update; then (1 + n) / (10 + n) >= 0.25 for n >= 2.
    assert values == pytest.approx([8 * 2 / 11, 8 * 2 / 11 / 4, 8 * 2 / 11 / 16, 8 * 2 / 11 / 64])


def test_the_decay_never_exceeds_its_bound():
    trained = linear(1.0)
    ema = EMA(trained, decay=0.9)
    ema.updates = 10_000
    set_weights(trained, 0.0)
    ema.update()
    assert ema.module.weight.item() == pytest.approx(0.9)


def test_a_decay_of_0_is_the_trained_module_itself():
    trained = linear(1.0)
    ema = EMA(trained, decay=0.0)
    assert ema.module is trained
    ema.update()
    assert trained.weight.item() == 1.0
    assert trained.weight.requires_grad


def test_the_average_is_a_module_of_its_own_that_is_not_trained():
    trained = nn.Sequential(nn.Dropout(0.5), linear(3.0))
    trained.train()
    ema = EMA(trained, decay=0.5)
    assert not ema.module.training
    assert trained.training
    assert all(not parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    ema.update()
    assert torch.equal(ema.module[1].weight, torch.tensor([[3.0]]))


def test_an_update_leaves_no_graph():
    trained = linear(1.0)
    ema = EMA(trained, decay=0.5)
    ema.update()
    assert not ema.module.weight.requires_grad
    assert ema.module.weight.grad_fn is None


def test_a_restart_begins_anew_with_the_present_weights():
    trained = linear(8.0)
    ema = EMA(trained, decay=0.999)
    for _ in range(5):
        ema.update()
    set_weights(trained, 3.0)
    ema.restart()
    assert (ema.updates, ema.module.weight.item(), ema.module.bias.item()) == (0, 3.0, -3.0)
    set_weights(trained, 14.0)
    assert ema.module.weight.item() == 3.0  # a copy
    ema.update()  # decay 2 / 11, as at first
    assert ema.module.weight.item() == pytest.approx(3 * 2 / 11 + 14 * 9 / 11)
