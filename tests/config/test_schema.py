"""What the configuration tree refuses by itself: values that no run could have."""

from dataclasses import fields, is_dataclass

import pytest

from arcdist.config import Config, load_config
from arcdist.errors import ConfigError


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--agent.hidden_dim=56", "agent.hidden_dim is 56: for agent.kind = recursive choose a multiple of 16."),
        ("--efe.target_share=1", "efe.target_share is 1.0: choose 0 up to 1."),
        ("--efe.statistics_decay=1.5", "efe.statistics_decay is 1.5: choose 0 to 1."),
        ("--refiner.rl_hidden=0", "refiner.rl_hidden is 0: choose at least 1."),
        ("--agent_lr=-1", "optim.agent_lr is -1.0: choose 0 or more."),
        ("--optim.weight_decay=-0.1", "optim.weight_decay is -0.1: choose 0 or more."),
        ("--optim.warmup_steps=-5", "optim.warmup_steps is -5: choose 0 or more."),
        ("--optim.beta2=1", "optim.beta2 is 1.0: choose 0 up to 1."),
        ("--optim.final_lr_share=1.5", "optim.final_lr_share is 1.5: choose 0 to 1."),
        ("--optim.max_grad_norm=0", "optim.max_grad_norm is 0.0: choose more than 0."),
        ("--train.cpu_threads=0", "train.cpu_threads is 0: choose at least 1, or null."),
        ("--seed=-1", "train.seed is -1: choose 0 to"),
        ("--seed=9223372036854775808", "train.seed is 9223372036854775808: choose 0 to"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_by_its_name(flag, message):
    with pytest.raises(ConfigError) as raised:
        load_config([flag])
    assert str(raised.value).startswith(message)
    assert str(raised.value).endswith(f"({raised.value.args[0].split(' ')[0]}: flag)")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "flag",
    [
        "--agent.kind=conv --agent.hidden_dim=56",
        "--agent_lr=0",
        "--optim.beta2=0",
        "--optim.final_lr_share=1",
        "--optim.warmup_steps=0",
        "--seed=9223372036854775807",
    ],
)
def test_values_at_the_edge_are_accepted(flag):
    assert load_config(flag.split()).config.train.epochs >= 1


def test_every_part_is_frozen():
    config = Config()
    for part in (config, *(getattr(config, f.name) for f in fields(config))):
        assert is_dataclass(part)
        with pytest.raises(AttributeError):
            setattr(part, fields(part)[0].name, None)
