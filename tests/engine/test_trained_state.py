import pytest
import torch
from torch import nn

from arcdist.engine import on_cpu
from arcdist.engine.trained_state import check_names, trainable, trained_state
from arcdist.errors import ConfigError


@pytest.fixture
def module():
    """A frozen layer, a trained one, and two buffers, of which one is no part of the state."""
    module = nn.ModuleDict({"frozen": nn.Linear(2, 2).requires_grad_(False), "trained": nn.Linear(2, 3)})
    module.register_buffer("count", torch.tensor([1, 2]))
    module.register_buffer("passing", torch.zeros(1), persistent=False)
    return module


def test_what_is_trained_by_name(module):
    assert trainable(module) == {"trained.weight": module["trained"].weight, "trained.bias": module["trained"].bias}


def test_the_state_is_what_is_trained_and_the_persistent_buffers_where_they_are(module):
    state = trained_state(module)
    assert set(state) == {"trained.weight", "trained.bias", "count"}
    assert state["trained.weight"] is module["trained"].weight
    assert state["count"] is module.count


def test_a_parameter_thawed_later_is_part_of_it(module):
    module["frozen"].bias.requires_grad_(True)
    assert "frozen.bias" in trained_state(module)
    assert "frozen.weight" not in trained_state(module)


def test_a_copy_on_the_cpu_is_nobody_else_s(module):
    weight = module["trained"].weight
    copied = on_cpu(weight.T)
    assert not copied.requires_grad
    assert copied.is_contiguous()
    assert torch.equal(copied, weight.detach().T)
    with torch.no_grad():
        weight.zero_()
    assert copied.abs().sum() > 0


def test_names_must_be_the_same():
    known = {name: torch.zeros(1) for name in "abc"}
    check_names(dict(reversed(known.items())), known)
    with pytest.raises(ConfigError, match=r"missing \['b', 'c'\], unknown \['d'\]") as raised:
        check_names({"a": torch.zeros(1), "d": torch.zeros(1)}, known)
    assert "Use the configuration that they were saved with." in str(raised.value)
    assert raised.value.exit_code == 2
