"""Times by region from traces whose times are known."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from arcdist.tracking.step_times import REST, StepTimes, step_times, times_table


def event(name, start, end, **changes):
    return {"ph": "X", "cat": "user_annotation", "name": name, "tid": 7, "ts": start, "dur": end - start, **changes}


def our(name, start, end, **changes):
    return event(f"arcdist/{name}", start, end, **changes)


def trace(*events):
    return {"traceEvents": [{"ph": "M", "name": "process_name"}, *events]}


def test_a_region_s_own_time_is_without_the_inner_ones():
    times = step_times(
        trace(
            our("data", 0, 1_000),
            our("step", 1_000, 11_000),
            our("agent", 2_000, 6_000),
            our("optimizer", 7_000, 10_000),
            our("communication", 8_000, 9_500),
            our("data", 20_000, 23_000),
            our("step", 23_000, 29_000),
            our("agent", 23_000, 29_000),
        )
    )
    assert times.steps == 2
    assert times.wall == {"data": 2.0, REST: 1.5, "agent": 5.0, "optimizer": 0.75, "communication": 0.75}
    assert times.device == {}


def test_what_lies_between_steps_and_in_other_threads_is_not_the_steps():
    times = step_times(
        trace(
            our("step", 0, 5_000),
            our("communication", 6_000, 8_000),
            our("agent", 1_000, 2_000, tid=8),
            event("ProfilerStep#3", 0, 10_000),
            our("agent", 1_000, 2_000, cat="gpu_user_annotation"),
        )
    )
    assert times.wall == {REST: 5.0}


def test_neighbours_that_overlap_by_rounding_stay_neighbours():
    times = step_times(trace(our("step", 0, 10), our("agent", 1, 4.001), our("solver", 4, 9), our("agent", 9, 10.001)))
    assert times.wall == pytest.approx({REST: 0.000998, "agent": 0.004002, "solver": 0.005}, abs=1e-9)


@given(st.recursive(st.just(()), lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=20))
def test_the_parts_sum_to_the_steps(tree):
    events, clock = [], 0

    def lay_out(node, name):
        nonlocal clock
        start = clock
        clock += 3
        for number, inner in enumerate(node):
            lay_out(inner, f"part {number}")
            clock += 2
        clock += 1
        events.append(our(name, start, clock))

    for name in ("data", "step", "data", "step"):
        lay_out(tree, name)
    times = step_times(trace(*events))
    assert sum(times.wall.values()) * 2e3 == pytest.approx(clock)
    assert all(part > 0 for part in times.wall.values())


def gpu(correlation, launch, duration, name="gemm", cat="kernel", launched_by="cuda_runtime"):
    """What the GPU does, long after it was launched by autograd's thread."""
    args = {"args": {"correlation": correlation}}
    return (
        event("cudaLaunchKernel", launch, launch + 5, cat=launched_by, **args, tid=99),
        event(name, launch + 90_000, launch + 90_000 + duration, cat=cat, **args, tid=0),
    )


def test_the_gpu_s_work_belongs_to_the_region_of_its_launch():
    times = step_times(
        trace(
            our("step", 0, 10_000),
            our("agent", 1_000, 3_000),
            our("grid backward", 4_000, 8_000),
            *gpu(1, 500, 100),
            *gpu(2, 1_500, 2_000),
            *gpu(3, 5_000, 4_000, launched_by="cuda_driver"),
            *gpu(4, 6_000, 1_000, name="ncclDevKernel_AllReduce_Sum_f32_RING_LL"),
            *gpu(5, 7_000, 300, name="Memcpy DtoH", cat="gpu_memcpy"),
            *gpu(6, 12_000, 9_000),  # after the step
            event("orphan", 0, 100, cat="kernel", args={"correlation": 77}),
        )
    )
    assert times.device == {REST: 0.1, "agent": 2.0, "grid backward": 4.3, "communication": 1.0}


def test_a_trace_without_steps_has_no_times():
    assert step_times(trace()) == StepTimes(steps=0, wall={}, device={})


def lines(table):
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return [line.strip() for line in text.getvalue().splitlines() if line.strip()]


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_table_has_the_longest_first_the_rest_last_and_the_sum():
    wall = {REST: 6.0, "agent": 1.0, "Qwen forward": 2.5, "data": 0.5}
    table = lines(times_table(StepTimes(steps=3, wall=wall, device={})))
    assert cells(table[0]) == ["where a step's time goes", "ms", "%"]
    assert [cells(line) for line in table[2:]] == [
        ["Qwen forward", "2.50", "25.0"],
        ["agent", "1.00", "10.0"],
        ["data", "0.50", "5.0"],
        [REST, "6.00", "60.0"],
        ["a step", "10.00", "100.0"],
    ]


def test_the_gpu_s_times_stand_beside():
    table = lines(times_table(StepTimes(steps=1, wall={"agent": 3.0, REST: 1.0}, device={"agent": 1500.0})))
    assert cells(table[0]) == ["where a step's time goes", "ms", "%", "GPU ms", "%"]
    assert [cells(line) for line in table[2:]] == [
        ["agent", "3.00", "75.0", "1,500.00", "100.0"],
        [REST, "1.00", "25.0", "0.00", "0.0"],
        ["a step", "4.00", "100.0", "1,500.00", "100.0"],
    ]
