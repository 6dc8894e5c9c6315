import pytest
import torch

from arcdist.engine.schedule import Schedule


@pytest.fixture
def optimizer():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.5, 2.0)]
    return torch.optim.AdamW(groups, lr=1.0)


def test_rates_are_peaks_times_the_share_of_the_steps_done(optimizer):
    schedule = Schedule(optimizer, lambda step: 1 / (1 + step))
    assert schedule.rates() == [0.5, 2.0]
    schedule.steps_done += 1
    assert schedule.rates() == [group["lr"] for group in optimizer.param_groups] == [0.25, 1.0]
    schedule.steps_done += 2
    assert schedule.rates() == [0.125, 0.5]


def test_a_schedule_goes_on_anywhere_also_after_its_optimizer_was_loaded(optimizer):
    schedule = Schedule(optimizer, lambda step: 1 / (1 + step))
    optimizer.load_state_dict(optimizer.state_dict())
    schedule.steps_done = 3
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.5]
    schedule.steps_done = 0
    assert schedule.rates() == [0.5, 2.0]
