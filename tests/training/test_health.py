"""When the red flags of a run rise and clear, and what ends it."""

import json
import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.errors import HealthError, NotFiniteError
from arcdist.training.health import RunHealth, mann_whitney_z

GOOD = {"reward": 0.1, "accuracy_delta": 0.01, "gradient_norms": {"qwen": 0.3, "agent": 1.0}}
EVERY = 50


def observe(health, losses, start=0, **changes):
    """The flags after each logged step, one every 50 steps."""
    return [
        health.observe((start + i) * EVERY, loss=float(loss), **{**GOOD, **changes})
        for i, loss in enumerate(losses, start=1)
    ]


def noisy(mean, rng, count):
    return mean + 0.2 * rng.standard_normal(count)


def test_z_of_windows_without_overlap():
    # U = 0 or 9; mean 4.5, standard deviation sqrt(9 * 7 / 12).
    assert mann_whitney_z([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(-4.5 / math.sqrt(5.25))
    assert mann_whitney_z([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(4.5 / math.sqrt(5.25))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1), st.lists(st.floats(-1e3, 1e3), min_size=1))
def test_z_changes_sign_with_the_order(earlier, later):
    assert mann_whitney_z(earlier, later) == pytest.approx(-mann_whitney_z(later, earlier), abs=1e-9)
    assert mann_whitney_z(earlier, earlier) == 0.0


def test_first_step_needs_a_gradient_in_every_group():
    health = RunHealth()
    health.require_gradients({"lora": 1e-12, "control_mlp": 0.1})
    assert health.flags == []
    with pytest.raises(HealthError, match=r"^group_without_gradient: lora, solver\. ") as raised:
        health.require_gradients({"lora": 0.0, "control_mlp": 0.1, "solver": 0.0})
    assert raised.value.exit_code == 5
    assert health.flags == ["group_without_gradient"]


def with_norms(health, step, **norms):
    return health.observe(step, loss=1.0 / step, **{**GOOD, "gradient_norms": norms})


def test_gradient_is_missed_after_a_hundred_batches_without_it(caplog):
    health = RunHealth()
    assert with_norms(health, 50, qwen=0.1, agent=1.0) == []
    assert with_norms(health, 149, qwen=0.0, agent=1.0) == []
    assert with_norms(health, 150, qwen=0.0, agent=1.0) == ["qwen_gradient_zero"]
    assert "zero for 100 batches. Check that a loss with a weight reaches it." in caplog.text
    assert with_norms(health, 151, qwen=0.2, agent=1.0) == []


def test_while_prompts_are_kept_no_gradient_of_qwen_is_missed():
    health = RunHealth(prompt_batches=512)
    assert with_norms(health, 50, qwen=0.1, agent=1.0) == []
    assert with_norms(health, 660, qwen=0.0, agent=0.0) == ["agent_gradient_zero"]
    assert with_norms(health, 661, qwen=0.0, agent=1.0) == ["qwen_gradient_zero"]


def test_gradient_that_never_came_is_counted_from_the_start_of_the_run():
    health = RunHealth()
    assert with_norms(health, 99, qwen=0.0) == []
    assert with_norms(health, 100, qwen=0.0) == ["qwen_gradient_zero"]


def test_a_learning_run_has_no_flag():
    rng = np.random.default_rng(0)
    losses = noisy(2.0 * np.exp(-np.arange(200) / 30), rng, 200)
    assert [flags for flags in observe(RunHealth(), losses) if flags] == []


def test_a_plateau_after_learning_is_no_alarm():
    rng = np.random.default_rng(1)
    losses = noisy(np.where(np.arange(100) < 10, 3.0, 0.5), rng, 100)
    assert [flags for flags in observe(RunHealth(), losses) if flags] == []


def test_flat_loss_is_flagged_and_clears_when_it_falls(caplog):
    caplog.set_level(logging.INFO, logger="arcdist")
    rng, health = np.random.default_rng(2), RunHealth()
    flat = observe(health, noisy(2.0, rng, 40))
    assert flat[18] == []
    assert flat[19] == ["loss_flat"]
    assert flat[-1] == ["loss_flat"]
    assert observe(health, noisy(0.5, rng, 20), start=40)[-1] == []
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("red flag at step 1000, loss_flat: The loss has not fallen")
    assert "--optim.agent_lr" in messages[0]
    assert messages[1].startswith("red flag cleared at step")


def test_constant_loss_is_flat():
    assert observe(RunHealth(), [1.0] * 20)[-1] == ["loss_flat"]


def test_rising_loss_is_flagged_even_far_below_the_start():
    rng, health = np.random.default_rng(3), RunHealth()
    assert observe(health, noisy(np.where(np.arange(30) < 10, 9.0, 1.0), rng, 30))[-1] == []
    assert observe(health, noisy(3.0, rng, 10), start=30)[-1] == ["loss_rising"]
    assert observe(health, noisy(1.0, rng, 20), start=40)[-1] == []


def test_noise_is_seldom_taken_for_a_rise():
    rng, rises = np.random.default_rng(4), 0
    for _ in range(50):
        health = RunHealth()
        first = noisy(9.0, rng, 10)
        rises += any("loss_rising" in flags for flags in observe(health, [*first, *noisy(1.0, rng, 20)]))
    assert rises <= 3


def test_log_cadence_does_not_shorten_the_window():
    health = RunHealth()
    flags = [health.observe(step, loss=1.0, **GOOD) for step in range(1, 401)]
    assert flags[398] == []
    assert flags[399] == ["loss_flat"]


def test_low_reward_must_last_a_whole_window():
    health = RunHealth()
    falling = np.linspace(2, 1, 40)
    assert observe(health, falling[:9], reward=-0.2)[-1] == []
    assert observe(health, falling[9:10], start=9, reward=-0.1)[-1] == []
    assert observe(health, falling[10:19], start=10, reward=-0.2)[-1] == []
    assert observe(health, falling[19:20], start=19, reward=-0.2)[-1] == ["reward_low"]
    assert observe(health, falling[20:24], start=20, reward=0.3)[-1] == ["reward_low"]
    assert observe(health, falling[24:25], start=24, reward=0.3)[-1] == []


def test_accuracy_delta_stuck_at_zero_clears_with_the_first_change():
    health = RunHealth()
    falling = np.linspace(2, 1, 40)
    assert observe(health, falling[:9], accuracy_delta=0.0)[-1] == []
    assert observe(health, falling[9:10], start=9, accuracy_delta=0.0)[-1] == ["accuracy_delta_zero"]
    assert observe(health, falling[10:11], start=10, accuracy_delta=-0.001)[-1] == []


def test_zero_gradient_is_flagged_by_group():
    health = RunHealth()
    norms = {"qwen": 0.0, "agent": 1.0}
    assert health.observe(50, loss=2.0, **{**GOOD, "gradient_norms": norms}) == []
    assert health.observe(100, loss=1.9, **{**GOOD, "gradient_norms": norms}) == ["qwen_gradient_zero"]
    assert health.observe(150, loss=1.8, **GOOD) == []


def test_the_error_of_numbers_that_are_not_finite_names_them_and_what_to_try():
    health = RunHealth()
    error = health.not_finite(7, "loss = nan", 1)
    assert isinstance(error, NotFiniteError)
    assert str(error).startswith("loss_not_finite at step 7: loss = nan. No such step changed a parameter. Lower ")
    assert "--train.precision no" in str(error)
    assert health.flags == ["loss_not_finite"]
    many = str(health.not_finite(12, "agent = inf", 10))
    assert many.startswith("loss_not_finite at step 12: agent = inf, the last of 10 such steps in a row. No such step")


def resumed(health):
    """A fresh judge that continues from the state of another, by way of JSON."""
    other = RunHealth()
    other.load_state(json.loads(json.dumps(health.state())))
    return other


@pytest.mark.parametrize("every", [1, 7, 20, 50])
def test_one_that_continues_from_a_state_raises_and_clears_the_same_flags(every):
    rng = np.random.default_rng(5)
    count = 4000 // every
    # All four kinds of flags rise and clear again: flat, then falling; rewards and deltas; a group without gradient.
    quarter = np.arange(count) * 4 // count
    losses = noisy(np.where(quarter < 2, 2.0, 0.5), rng, count)
    given = [
        {
            "loss": float(loss),
            "reward": (-0.5, 0.1, 0.1, -0.5)[part],
            "accuracy_delta": (0.0, 0.0, 0.1, 0.0)[part],
            "gradient_norms": {"qwen": (0.0, 0.0, 1.0, 0.0)[part], "agent": 1.0},
        }
        for loss, part in zip(losses, quarter, strict=True)
    ]
    whole, pieces, seen = RunHealth(), RunHealth(), set()
    for index, values in enumerate(given, start=1):
        pieces = resumed(pieces)
        flags = whole.observe(index * every, **values)
        assert pieces.observe(index * every, **values) == flags
        assert pieces.state() == whole.state()
        seen |= set(flags)
    assert seen == {"loss_flat", "reward_low", "accuracy_delta_zero", "qwen_gradient_zero"}


def test_a_raised_flag_is_not_logged_again_after_resuming_and_its_clearing_is(caplog):
    health = RunHealth()
    observe(health, [1.0] * 20)
    caplog.set_level(logging.INFO, logger="arcdist")
    caplog.clear()
    other = resumed(health)
    assert other.flags == ["loss_flat"]
    assert observe(other, [1.0] * 5, start=20)[-1] == ["loss_flat"]
    assert caplog.records == []
    assert observe(other, np.linspace(0.5, 0.1, 20), start=25)[-1] == []
    (record,) = caplog.records
    assert record.getMessage().startswith("red flag cleared at step")


def test_flags_that_end_a_run_are_kept_too():
    health = RunHealth()
    health.not_finite(1, "loss = nan", 1)
    with pytest.raises(HealthError):
        health.require_gradients({"solver": 0.0})
    assert resumed(health).flags == ["group_without_gradient", "loss_not_finite"]


def test_a_gradient_is_missed_since_the_step_it_was_last_seen_in_another_run():
    health = RunHealth()
    with_norms(health, 70, qwen=0.1)
    other = resumed(health)
    assert with_norms(other, 169, qwen=0.0) == []
    assert with_norms(other, 170, qwen=0.0) == ["qwen_gradient_zero"]
