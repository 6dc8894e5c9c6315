import json

import pytest

from arcdist.config import load_config
from arcdist.training.loop_state import LoopState
from arcdist.training.step import StepReport

FLAGS = (
    *("--train.epochs=3", "--curriculum.size_warmup_epochs=2", "--curriculum.memory_gate=2.0"),
    *("--curriculum.memory_threshold_start=0.5", "--curriculum.memory_threshold_alpha=0.25"),
)


def make_state():
    return LoopState(load_config(FLAGS).config, steps_per_epoch=4, processes=2)


def report(cell):
    return StepReport(
        metrics={"loss": 2.0, "train/cell": cell},
        group_norms={"agent": 1.0},
        queries=4,
        tokens=100,
        finite=True,
        not_finite_on=(),
        stop=False,
        preempted=False,
        save_failed=False,
    )


def make_steps(state, cells):
    for cell in cells:
        state.step += 1
        state.batch += 1
        state.take_in(report(cell), seconds=0.5)


def test_where_epochs_and_the_run_end_and_what_the_size_loss_weighs():
    state = make_state()
    weights, ends = [], []
    for _ in range(3):
        for _ in range(4):
            weights.append(state.size_weight)
            make_steps(state, [1.0])
            ends.append((state.ends_epoch, state.ends_run))
        state.begin_epoch()
    # From 1.0 to 0.5 over two epochs of four steps.
    assert weights == pytest.approx([1.0 - step / 16 for step in range(8)] + 4 * [0.5])
    assert ends == 2 * (3 * [(False, False)] + [(True, False)]) + 3 * [(False, False)] + [(True, True)]
    assert (state.epoch, state.batch, state.step) == (3, 0, 12)


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


def test_a_state_goes_on_through_json_where_it_was():
    first, second = make_state(), make_state()
    make_steps(first, [0.7, 0.3, 0.2])
    first.cost.load_state({"seconds": 1000.0, "device_seconds": 3600.0, "tracking": 10.0})
    first.skipped, first.skipped_in_a_row, first.gradients_checked = 2, 1, True
    second.load_state(json.loads(json.dumps(first.state())))
    for state in (first, second):
        make_steps(state, [0.9])
        state.skipped += 1
    kept, again = first.state(), second.state()
    # Two processes, each on a device of its own: the clock goes on.
    cost = again.pop("cost")
    assert again == {name: value for name, value in kept.items() if name != "cost"}
    assert 1000.0 < cost["seconds"] < 1100.0
    assert cost["device_seconds"] == pytest.approx(3600.0 + 2 * (cost["seconds"] - 1000.0))
    assert cost["tracking"] == 10.0
