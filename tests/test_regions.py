"""Regions: seen by a profiler, free where none runs."""

import inspect
from contextlib import nullcontext
from timeit import repeat

import pytest
from torch.profiler import ProfilerActivity, profile, record_function

from arcdist.regions import PREFIX, each_in_region, recorded_regions, region


def names(profiled):
    return [event.name.removeprefix(PREFIX) for event in profiled.events() if event.name.startswith(PREFIX)]


@pytest.fixture(scope="module", autouse=True)
def _silent_profiler():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINETO_LOG_LEVEL", "6")
        yield


def test_a_profiler_sees_the_regions_while_they_are_recorded():
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        with region("before"):
            pass
        with recorded_regions(), region("outer"):
            assert list(each_in_region("data", [1, 2])) == [1, 2]
            with pytest.raises(ValueError, match="broken"), region("failing"):
                raise ValueError("broken")
        with region("after"):
            pass
    # The third look finds that there are no more items.
    assert names(profiled) == ["outer", "data", "data", "data", "failing"]


def test_items_come_as_they_are_with_and_without_a_profiler():
    assert list(each_in_region("data", [])) == []
    assert list(each_in_region("data", iter([None, StopIteration, 3]))) == [None, StopIteration, 3]

    def failing():
        yield 1
        raise KeyError("a")

    items = each_in_region("data", failing())
    assert next(items) == 1
    with pytest.raises(KeyError):
        next(items)


def test_without_a_profiler_a_region_costs_next_to_nothing():
    def seconds(make):
        def enter():
            with make("agent"):
                pass

        return min(repeat(enter, number=5000, repeat=7)) / 5000

    nothing = nullcontext()
    cost = seconds(inspect.unwrap(region))  # without the check of its types, which tests add
    assert cost < 3 * seconds(lambda _: nothing)
    assert cost < 0.5 * seconds(record_function)
