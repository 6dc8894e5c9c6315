import pytest

from arcdist.tracking import MovingPace


@pytest.mark.parametrize(
    ("queries", "tokens", "shown"),
    [
        (1, 3, "0.5 pairs/s, 1.5 tok/s"),
        (20, 2_000, "10 pairs/s, 1000 tok/s"),
        (256, 82_000, "128 pairs/s, 41k tok/s"),
        (19_000, 2_400_000, "9500 pairs/s, 1.2M tok/s"),
        (19_990, 1_999_000, "10k pairs/s, 1.0M tok/s"),
    ],
)
def test_the_pace_is_told_in_few_characters(queries, tokens, shown):
    pace = MovingPace()
    assert str(pace) == ""
    pace.add(queries, tokens, 2.0)
    assert str(pace) == shown
    assert pace.seconds == 2.0


def test_it_is_a_mean_over_time_not_over_steps():
    pace = MovingPace()
    pace.add(10, 1000, 1.0)
    pace.add(10, 3000, 3.0)
    assert str(pace) == "5.0 pairs/s, 1000 tok/s"
    assert pace.seconds == 3.0


def test_only_the_last_twenty_steps_count():
    pace = MovingPace()
    pace.add(0, 0, 1000.0)
    for _ in range(20):
        pace.add(64, 6400, 2.0)
    assert str(pace) == "32 pairs/s, 3200 tok/s"
