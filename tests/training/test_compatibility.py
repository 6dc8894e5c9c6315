"""Which configurations a run goes on under."""

import json
import logging
import re
from dataclasses import replace

import pytest

from arcdist.config import Config
from arcdist.config.keys import flatten
from arcdist.errors import ConfigError, DataError
from arcdist.training.compatibility import check_configuration

BASE = {"model": "Qwen/Qwen2.5-1.5B", "sha256": "ab" * 32}

MAY_CHANGE = {
    *("output.dir", "output.log_every", "output.save_every", "output.keep_last", "output.on_save_error"),
    *("output.preempted_exit_code", "output.validate_every", "output.best_metric"),
    *("distributed.timeout", "distributed.silence", "distributed.replica_check_every"),
    *("tracking.wandb", "tracking.wandb_project", "tracking.wandb_entity", "tracking.upload_best"),
    *("tracking.tensorboard", "tracking.shown_queries"),
    *("train.accumulation", "train.device", "train.cpu_threads"),
    *("qwen.gradient_checkpointing", "data.source", "data.validation_source"),
}
WARNS = {
    *("train.precision", "qwen.dtype", "qwen.model"),
    *("optim.agent_lr", "optim.qwen_lr", "optim.solver_lr_scale", "optim.efe_lr_scale", "optim.task_vector_lr_scale"),
    *("optim.weight_decay", "optim.beta2", "optim.warmup_steps", "optim.final_lr_share", "optim.max_grad_norm"),
}
WARNING_SECTIONS = ("efe", "reward", "curriculum")


DATA = {"training": "12" * 16, "validation": "34" * 16}


def state_of(config, **changes):
    """What a checkpoint of a run with this configuration says, once it has been JSON."""
    state = {"config": flatten(config), "base": BASE, "data": DATA, "step": 30, "epoch": 2, "batch": 0} | changes
    return json.loads(json.dumps(state))


def check(config, state, caplog, base=BASE, data=DATA):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="arcdist"):
        check_configuration(config, state, base, data)
    return [record.getMessage() for record in caplog.records]


def test_the_same_configuration_is_fine_and_nothing_is_told(caplog):
    assert check(Config(), state_of(Config()), caplog) == []


@pytest.mark.parametrize("name", flatten(Config()))
def test_every_key_may_change_bends_the_curve_or_is_refused(caplog, name):
    state = state_of(Config())
    state["config"][name] = "another"
    value = flatten(Config())[name]
    shown = ",".join(value) if isinstance(value, tuple) else value if isinstance(value, str) else json.dumps(value)
    if name in MAY_CHANGE:
        assert check(Config(), state, caplog) == []
    elif name == "train.epochs":
        (told,) = check(Config(), state, caplog)
        assert (
            told
            == f"train.epochs is {shown} from here on, no longer another: the learning rates follow the new length."
        )
    elif name in WARNS or name.partition(".")[0] in WARNING_SECTIONS:
        assert check(Config(), state, caplog) == [f"{name} is {shown} from here on, no longer another."]
    else:
        with pytest.raises(ConfigError) as raised:
            check(Config(), state, caplog)
        assert str(raised.value) == (
            f"{name} is {shown}, and the checkpoint's run has another: a run cannot change that on the way. "
            f"Resume with --{name} another, or start a new run."
        )


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("data.max_tasks", None, "null"),
        ("data.augment.colors", False, "false"),
        ("qwen.lora_targets", ["q_proj", "v_proj"], "q_proj,v_proj"),
        ("agent.hidden_dim", 17, "17"),
    ],
)
def test_the_value_to_resume_with_is_written_as_a_flag_takes_it(caplog, name, value, shown):
    config = Config(data=replace(Config().data, max_tasks=3))
    with pytest.raises(ConfigError, match=rf"Resume with --{re.escape(name)} {shown}, or start"):
        check(config, state_of(config) | {"config": state_of(config)["config"] | {name: value}}, caplog)


def test_every_change_that_bends_the_curve_is_told(caplog):
    state = state_of(Config())
    state["config"] |= {"optim.agent_lr": 0.5, "train.precision": "bf16"}
    assert len(check(Config(), state, caplog)) == 2


def test_a_key_that_the_checkpoint_does_not_know_has_its_default(caplog):
    state = state_of(Config())
    del state["config"]["agent.hidden_dim"]
    state["config"]["agent.of_old"] = 3  # nor does one that no longer exists matter
    assert check(Config(), state, caplog) == []


def test_another_base_is_refused_whatever_it_is_called(caplog):
    other = {"model": "models/mine", "sha256": "cd" * 32}
    with pytest.raises(ConfigError) as raised:
        check(Config(), state_of(Config()), caplog, base=other)
    assert str(raised.value) == (
        "Qwen's frozen base is models/mine (SHA-256 cdcdcdcdcdcd), and the checkpoint's adapters belong to "
        "Qwen/Qwen2.5-1.5B (abababababab): give that one with --qwen.model."
    )
    # The same base from elsewhere is the same.
    config = Config(qwen=replace(Config().qwen, model="models/mine"))
    told = check(config, state_of(Config()), caplog, base={"model": "models/mine", "sha256": BASE["sha256"]})
    assert told == ["qwen.model is models/mine from here on, no longer Qwen/Qwen2.5-1.5B."]


def test_a_state_that_does_not_say_of_what_is_refused(caplog):
    with pytest.raises(
        DataError, match=r"state\.json lacks base, batch, config, data, epoch, step: resume from another one"
    ):
        check(Config(), {}, caplog)


@pytest.mark.parametrize("role", ["training", "validation"])
def test_other_tasks_are_refused_wherever_they_lie(caplog, role):
    with pytest.raises(ConfigError) as raised:
        check(Config(), state_of(Config()), caplog, data=DATA | {role: "56" * 16})
    assert str(raised.value) == (
        f"The {role} tasks are not those of the checkpoint's run (checksum 565656565656, there {DATA[role][:12]}): "
        f"name the same ones with --data.source, or start a new run."
    )


@pytest.mark.parametrize(
    ("epochs", "batch", "fits"), [(1, 0, False), (2, 0, True), (2, 1, False), (3, 1, True), (9, 0, True)]
)
def test_a_run_cannot_end_before_the_epoch_that_it_is_in(caplog, epochs, batch, fits):
    config = Config(train=replace(Config().train, epochs=epochs))
    if fits:
        assert check(config, state_of(config, batch=batch), caplog) == []
    else:
        begun = 2 + batch
        message = (
            rf"^train\.epochs is {epochs}, and .* after 30 steps, in the run's epoch {begun}: choose --epochs {begun}"
        )
        with pytest.raises(ConfigError, match=message):
            check(config, state_of(config, batch=batch), caplog)


def test_all_that_is_refused_is_told_at_once(caplog):
    state = state_of(Config())
    state["config"] |= {"data.max_side": 8, "agent.hidden_dim": 32}
    with pytest.raises(ConfigError, match=r"Resume with --data\.max_side 8 --agent\.hidden_dim 32, or start"):
        check(Config(), state, caplog)
