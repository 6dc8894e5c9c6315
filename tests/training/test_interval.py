import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.training.interval import Interval
from arcdist.training.step import StepReport


def report(loss, queries=1, tokens=1, **norms):
    return StepReport(
        metrics={"loss": loss},
        group_norms=norms,
        queries=queries,
        tokens=tokens,
        finite=True,
        not_finite_on=(),
        stop=False,
        preempted=False,
        save_failed=False,
    )


def test_means_maxima_and_pace_by_hand():
    interval = Interval()
    interval.add(report(2.0, queries=4, tokens=100, lora=0.0, agent=3.0), seconds=0.5)
    interval.add(report(5.0, queries=2, tokens=50, lora=0.5, agent=1.0), seconds=1.0)
    assert interval.means() == pytest.approx(
        {
            "loss": 3.0,  # Of the queries: (4 x 2 + 2 x 5) / 6.
            "grad_norm/lora": 0.25,
            "grad_norm/agent": 2.0,
            "pairs_per_s": 4.0,
            "tokens_per_s": 100.0,
        }
    )
    assert interval.largest_norms == {"lora": 0.5, "agent": 3.0}


def test_an_empty_interval_has_a_pace_of_zero_and_nothing_else():
    interval = Interval()
    assert interval.means() == {"pairs_per_s": 0.0, "tokens_per_s": 0.0}
    assert interval.largest_norms == {}


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
def test_one_that_goes_on_from_its_state_is_the_same_to_the_last_bit(before, after):
    whole, first, second = Interval(), Interval(), Interval()
    for step in before:
        whole.add(report(**step), seconds=0.1)
        first.add(report(**step), seconds=0.1)
    second.load_state(json.loads(json.dumps(first.state())))
    for step in after:
        whole.add(report(**step), seconds=0.1)
        second.add(report(**step), seconds=0.1)
    assert second.means() == whole.means()
    assert second.largest_norms == whole.largest_norms
    assert second.steps == whole.steps
    assert second.state() == whole.state()


def test_a_state_is_no_part_of_what_it_was_taken_of():
    interval = Interval()
    interval.add(report(1.0, agent=2.0), seconds=0.5)
    state = interval.state()
    assert state == {
        "steps": 1,
        "queries": 1,
        "tokens": 1,
        "seconds": 0.5,
        "sums": {"loss": 1.0},
        "norm_sums": {"grad_norm/agent": 2.0},
        "largest_norms": {"agent": 2.0},
    }
    other = Interval()
    other.load_state(state)
    for each in (interval, other):
        each.add(report(5.0, agent=7.0, lora=1.0), seconds=0.5)
    assert (state["steps"], state["sums"], state["largest_norms"]) == (1, {"loss": 1.0}, {"agent": 2.0})
