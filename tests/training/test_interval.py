import pytest

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
