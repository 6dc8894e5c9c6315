"""Values as tables show them."""

import pytest

from arcdist.analysis.tables import Row, Spread, show_value


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.12345, "percent", "12.35"),
        (1234.5, "number", "1234"),
        (102.0, "number", "102.0"),
        (0.5238, "number", "0.5238"),
        (999.96, "number", "1000"),
        (3, "number", "3"),
        (True, "text", "true"),
        (0.0001, "text", "0.0001"),
        (("a", "b"), "text", '["a", "b"]'),
        (None, "number", "–"),
        (Spread(mean=0.5, deviation=0.123, runs=2, of=2), "number", "0.5000 ± 0.12"),
        (Spread(mean=1500.0, deviation=23.4, runs=2, of=2), "number", "1500 ± 23"),
        (Spread(mean=100.0, deviation=2.0, runs=2, of=2), "number", "100.0 ± 2.0"),
        (Spread(mean=0.04, deviation=0.0031, runs=2, of=3), "percent", "4.00 ± 0.31 (2 of 3)"),
        (Spread(mean=0.04, deviation=None, runs=1, of=3), "percent", "4.00 (1 of 3)"),
        (True, "yes or no", "yes"),
        (False, "yes or no", "no"),
    ],
)
def test_values_as_they_are_shown(value, unit, text):
    assert show_value(value, unit) == text


def test_the_highest_of_several_that_differ_is_marked():
    def marks(*values, highest_is_best=True):
        return Row(key="k", label="k", values=values, highest_is_best=highest_is_best).marks

    assert marks(1.0, 2.0, None) == (False, True, False)
    assert marks(1.0, 1.0, None) == (False, False, False)
    assert marks(1.0, 2.0, highest_is_best=False) == (False, False)
    assert marks(["all-linear"], ["q_proj", "v_proj"], highest_is_best=False) == (False, False)  # a setting
    group = Spread(mean=1.5, deviation=0.1, runs=2, of=2)
    assert marks(group, 1.0) == (True, False)
