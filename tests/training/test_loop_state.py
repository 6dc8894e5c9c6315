"""What a run counts: means over an interval, time, and where it is; all of it through JSON and back."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import load_config
from arcdist.config.schema import CurriculumConfig
from arcdist.errors import ConfigError
from arcdist.training.loop_state import Cost, DynamicMemoryThreshold, Interval, LoopState
from arcdist.training.step import StepReport


def test_threshold_is_the_gate_times_the_average():
    threshold = DynamicMemoryThreshold(start=0.2, alpha=0.1, gate=1.1)
    assert threshold.threshold == pytest.approx(0.22)
    threshold.update(0.7)
    assert threshold.threshold == pytest.approx(1.1 * 0.25)
    threshold.update(0.25)
    assert threshold.threshold == pytest.approx(1.1 * 0.25)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"size_warmup_epochs": -1}, "size_warmup_epochs"), ({"memory_threshold_alpha": 0.0}, "memory_threshold_alpha")],
)
def test_impossible_curriculum_is_refused(changes, key):
    with pytest.raises(ConfigError, match=f"curriculum.{key} is .*: choose"):
        CurriculumConfig(**changes)


def report(loss, queries=1, tokens=1, cell=0.0, **norms):
    return StepReport(
        metrics={"loss": loss, "train/cell": cell},
        group_norms=norms,
        queries=queries,
        tokens=tokens,
        finite=True,
        signals=(),
    )


def test_the_loss_of_writing_is_a_mean_over_what_was_written():
    interval, first = Interval(), report(1.0, queries=4)
    for lm_loss, written in ((2.0, 3), (None, 0), (5.0, 1)):
        own = {} if lm_loss is None else {"lm_loss": lm_loss}
        interval.add(replace(first, metrics=first.metrics | own, written=written), seconds=1.0)
    assert interval.means()["lm_loss"] == (3 * 2.0 + 5.0) / 4
    assert interval.means()["loss"] == 1.0
    whole = Interval(**json.loads(json.dumps(asdict(interval))))
    assert whole.means() == interval.means()
    never = Interval()
    never.add(first, seconds=1.0)
    assert "lm_loss" not in never.means()


def test_a_reward_is_a_mean_over_what_was_rewarded():
    interval, first = Interval(), report(1.0, queries=8)
    for reward, rewarded in ((2.0, 3), (0.0, 0), (6.0, 1)):
        step = replace(first, metrics=first.metrics | {"reward/mean": reward}, rewarded=rewarded)
        interval.add(step, seconds=1.0)
    assert interval.means()["reward/mean"] == 3.0
    never = Interval()
    never.add(replace(first, metrics={"reward/mean": 0.0}), seconds=1.0)
    assert never.means()["reward/mean"] == 0.0


def test_means_maxima_and_pace_by_hand():
    interval = Interval()
    interval.add(report(2.0, queries=4, tokens=100, lora=0.0, agent=3.0), seconds=0.5)
    interval.add(report(5.0, queries=2, tokens=50, lora=0.5, agent=1.0), seconds=1.0)
    assert interval.means() == pytest.approx(
        {
            "train/cell": 0.0,
            "loss": 3.0,  # Of the queries: (4 x 2 + 2 x 5) / 6.
            "pairs_per_s": 4.0,
            "tokens_per_s": 100.0,
        }
    )
    assert interval.mean_norms() == {"lora": 0.25, "agent": 2.0}
    assert interval.largest_norms == {"lora": 0.5, "agent": 3.0}


def test_an_empty_interval_has_a_pace_of_zero_and_nothing_else():
    interval = Interval()
    assert interval.means() == {"pairs_per_s": 0.0, "tokens_per_s": 0.0}
    assert interval.mean_norms() == interval.largest_norms == {}


def test_a_norm_that_was_always_zero_is_known():
    interval = Interval()
    interval.add(report(1.0, solver=0.0), seconds=1.0)
    assert interval.largest_norms == {"solver": 0.0}


STEPS = st.lists(
    st.fixed_dictionaries(
        {
            "loss": st.floats(-1e3, 1e3),
            "queries": st.integers(1, 16),
            "tokens": st.integers(0, 10**6),
            "agent": st.floats(0, 1e3),
            "lora": st.floats(0, 1e3),
        }
    ),
    max_size=4,
)


@given(before=STEPS, after=STEPS)
def test_one_that_continues_from_its_state_is_the_same_to_the_last_bit(before, after):
    whole, first = Interval(), Interval()
    for step in before:
        whole.add(report(**step), seconds=0.1)
        first.add(report(**step), seconds=0.1)
    second = Interval(**json.loads(json.dumps(asdict(first))))
    for step in after:
        whole.add(report(**step), seconds=0.1)
        second.add(report(**step), seconds=0.1)
    assert second == whole
    assert (second.means(), second.mean_norms()) == (whole.means(), whole.mean_norms())


def test_a_state_is_no_part_of_what_it_was_taken_of():
    interval = Interval()
    interval.add(report(1.0, agent=2.0), seconds=0.5)
    state = asdict(interval)
    assert state == {
        "steps": 1,
        "queries": 1,
        "tokens": 1,
        "seconds": 0.5,
        "written": 0,
        "rewarded": 0,
        "sums": {"loss": 1.0, "train/cell": 0.0},
        "norm_sums": {"grad_norm/agent": 2.0},
        "largest_norms": {"agent": 2.0},
    }
    interval.add(report(5.0, agent=7.0, lora=1.0), seconds=0.5)
    assert (state["steps"], state["sums"], state["largest_norms"]) == (
        1,
        {"loss": 1.0, "train/cell": 0.0},
        {"agent": 2.0},
    )


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def test_every_process_counts_as_a_device(clock):
    spent = Cost(processes=4)
    clock.now = 150.0
    spent.start()
    clock.now = 150.0 + 1800
    assert spent.record() == {"time/elapsed_s": 1800.0, "time/device_hours": 2.0, "time/tracking_s": 0.0}


def test_what_training_waits_for_its_numbers_is_counted_even_where_that_fails(clock):
    spent = Cost(processes=1)
    for seconds in (2.0, 3.0):
        with suppress(OSError), spent.of_tracking():
            clock.now += seconds
            raise OSError
    clock.now += 20
    assert spent.record()["time/tracking_s"] == 5.0
    resumed = Cost(processes=1)
    resumed.load_state(spent.state())
    assert resumed.record()["time/tracking_s"] == 5.0


def test_a_resumed_run_counts_on_with_the_processes_that_it_has_then(clock):
    spent = Cost(processes=4)
    clock.now += 3600
    state = spent.state()
    clock.now += 10**6  # while nothing runs
    resumed = Cost(processes=1)
    resumed.load_state(state)
    clock.now += 1800
    assert resumed.record()["time/elapsed_s"] == 5400.0
    assert resumed.record()["time/device_hours"] == pytest.approx(4.5)


FLAGS = (
    *("--train.epochs=3", "--curriculum.size_warmup_epochs=2", "--curriculum.memory_gate=2.0"),
    *("--curriculum.memory_threshold_start=0.5", "--curriculum.memory_threshold_alpha=0.25"),
)


def make_state(*flags):
    return LoopState(load_config([*FLAGS, *flags]).config, steps_per_epoch=4, processes=2)


def make_steps(state, cells):
    for cell in cells:
        state.step += 1
        state.batch += 1
        state.add(report(2.0, queries=4, tokens=100, cell=cell, agent=1.0), seconds=0.5)


def test_where_epochs_and_the_run_end_and_what_the_size_loss_weighs():
    state = make_state()
    weights, ends = [], []
    for _ in range(3):
        for _ in range(4):
            weights.append(state.size_weight)
            make_steps(state, [1.0])
            ends.append((state.ends_epoch, state.ends_run))
        state.begin_epoch()
    # From 1.0 to 0.5 over two epochs of four steps, and then as it is.
    assert weights == pytest.approx([1.0 - step / 16 for step in range(8)] + 4 * [0.5])
    assert ends == 2 * (3 * [(False, False)] + [(True, False)]) + 3 * [(False, False)] + [(True, True)]
    assert (state.epoch, state.batch, state.step) == (3, 0, 12)


def test_a_budget_ends_the_run_and_its_last_epoch_wherever_that_is():
    state = LoopState(load_config(["--budget_minutes=0.255"]).config, steps_per_epoch=4, processes=2)
    assert (state.total, state.done, state.budget_used, state.is_complete) == (16, 0, 0.0, False)
    make_steps(state, [1.0, 1.0])
    state.seconds = 15.2
    assert (state.ends_epoch, state.ends_run, state.done) == (False, False, 15)
    assert state.budget_used == pytest.approx(15.2 / 15.3)
    state.seconds = 15.3
    assert (state.ends_epoch, state.ends_run, state.is_complete) == (True, True, False)
    assert (state.done, state.budget_used) == (16, 1.0)
    state.begin_epoch()
    # Without a batch of this epoch there is nothing to end.
    assert (state.ends_epoch, state.ends_run, state.is_complete) == (False, True, True)


def test_without_a_budget_time_does_not_count():
    state = make_state()
    state.seconds = 1e6
    assert (state.total, state.done, state.budget_used, state.ends_run) == (12, 0, 0.0, False)


@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (3, 0.875), (6, 0.75), (12, 0.5), (28, 0.5)])
def test_by_default_the_size_weight_falls_over_three_epochs(step, weight):
    state = LoopState(load_config([]).config, steps_per_epoch=4, processes=1)
    state.step = step
    assert state.size_weight == pytest.approx(weight, abs=1e-12)


def test_without_a_warm_up_the_size_weight_is_its_end():
    flags = ("--curriculum.size_weight_start=2", "--curriculum.size_weight_end=0.25")
    assert make_state(*flags, "--curriculum.size_warmup_epochs=0").size_weight == 0.25


def test_a_step_moves_the_gate_and_both_intervals_and_an_epoch_begins_with_an_empty_one():
    state = make_state()
    make_steps(state, [0.7, 0.3])
    assert state.memory_gate.threshold == pytest.approx(2.0 * (0.75 * (0.5 + 0.25 * 0.2) + 0.25 * 0.3))
    assert state.since_log.means() == state.since_epoch.means()
    assert state.since_log.means()["train/cell"] == pytest.approx(0.5)
    state.begin_epoch()
    assert (state.since_epoch.steps, state.since_log.steps) == (0, 2)
    state.begin_line()
    assert state.since_log.steps == 0


def test_a_state_continues_through_json_where_it_was():
    first, second = make_state(), make_state()
    make_steps(first, [0.7, 0.3, 0.2])
    first.cost.load_state({"seconds": 1000.0, "device_seconds": 3600.0, "tracking": 10.0})
    first.skipped, first.skipped_in_a_row, first.gradients_checked = 2, 1, True
    stored = json.dumps(first.state())
    loaded = json.loads(stored)
    second.load_state(loaded)
    for state in (first, second):
        make_steps(state, [0.9])
        state.skipped += 1
    assert json.dumps(loaded) == stored
    assert second.memory_gate.threshold == first.memory_gate.threshold
    kept, again = first.state(), second.state()
    # Two processes, each with its own device: the clock continues.
    cost = again.pop("cost")
    assert again == {name: value for name, value in kept.items() if name != "cost"}
    assert 1000.0 < cost["seconds"] < 1100.0
    assert cost["device_seconds"] == pytest.approx(3600.0 + 2 * (cost["seconds"] - 1000.0))
    assert cost["tracking"] == 10.0
