"""Numbers in words and digits, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.analysis.tables import show_value
from arcdist.formatting import counted, duration, hundredths, number, percent, significant


def test_what_is_not_known_is_a_dash():
    assert [number(None), percent(None), duration(None), show_value(None, "number")] == ["–"] * 4


def test_wording():
    assert [duration(seconds) for seconds in (0, 299, 300, 7199, 7200)] == ["0 s", "299 s", "5 min", "120 min", "2.0 h"]
    assert (percent(0.04), percent(0.0012, "+"), percent(-0.01, "+")) == ("4.00 %", "+0.12 %", "-1.00 %")
    assert (hundredths(0.12345), hundredths(0.5, "+"), hundredths(-0.0062, "+")) == ("12.35", "+50.00", "-0.62")
    assert number(1234.5, ",.1f") == "1,234.5"
    assert [counted(1, "query"), counted(2000, "query"), counted(0, "epoch")] == [
        "1 query",
        "2,000 queries",
        "0 epochs",
    ]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.5, 4, "1234"),
        (999.96, 4, "1000"),
        (102.0, 4, "102.0"),
        (-0.01234567, 4, "-0.01235"),
        (3, 4, "3"),
        (23.4, 2, "23"),
        (9.97, 2, "10"),
        (2.0, 2, "2.0"),
        (0.0, 2, "0.0"),
    ],
)
def test_digits_that_count(value, digits, text):
    assert significant(value, digits) == text


@given(st.floats(-1, 1))
def test_tables_and_sentences_say_the_same_of_a_share(share):
    assert percent(share) == f"{show_value(share, 'percent')} %"
