"""Runs with `--profile`: the same numbers, and two files that say where the time went."""

import gzip
import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from shared.measured import without_measured

from arcdist.distributed import Heartbeat
from arcdist.regions import DATA, STEP, each_in_region, region
from arcdist.tracking import MovingPace
from arcdist.training.diagnostics import REST, StepProfiler, StepTimes, step_times, times_table
from arcdist.training.loop import Loop


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


REGIONS = {
    *("data", "step", "Qwen forward", "Qwen backward", "agent", "refiner", "solver", "EFE and other losses"),
    *("scores and rewards", "grid backward (agent, EFE, solver)", "optimizer", "results to the host"),
}


@pytest.fixture
def run(build_tiny, tmp_path):
    """A run in a folder of its name."""

    def run(name, *flags, profiled_steps):
        folder = tmp_path / name
        folder.mkdir()
        Loop(build_tiny(*flags), folder, Heartbeat(folder, 0), profiled_steps=profiled_steps).run()
        return folder

    return run


def read_steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def read_trace(folder):
    with gzip.open(folder / "profile" / "trace.json.gz") as content:
        return json.load(content)


@pytest.mark.slow
def test_a_profiled_run_has_the_same_numbers_and_leaves_trace_and_table(run, capsys, monkeypatch):
    flags = ("--data.max_tasks=12", "--max_batches=10", "--save_every=100")
    plain = run("plain", *flags, profiled_steps=0)
    timed, add = [], MovingPace.add

    def add_and_keep(pace, queries, tokens, seconds):
        timed.append(seconds)
        add(pace, queries, tokens, seconds)

    monkeypatch.setattr(MovingPace, "add", add_and_keep)
    profiled = run("profiled", *flags, profiled_steps=3)
    assert not (plain / "profile").exists()
    steps = [without_measured(read_steps(folder)) for folder in (plain, profiled)]
    assert len(steps[0]) == 10
    assert steps[0] == steps[1]
    assert {path.name for path in (profiled / "profile").iterdir()} == {"trace.json.gz", "table.txt"}

    trace = read_trace(profiled)
    ours = [event for event in trace["traceEvents"] if event.get("name", "").startswith("arcdist/")]
    assert {event["name"].removeprefix("arcdist/") for event in ours} == REGIONS
    times = step_times(trace)
    assert times.steps == 3
    assert times.wall.keys() == REGIONS - {"step"} | {REST}
    assert times.device == {}
    # Steps 6, 7 and 8, as the run itself has timed them.
    seconds = timed[5:8]
    assert sum(times.wall.values()) == pytest.approx(1e3 * sum(seconds) / 3, rel=0.04)
    assert times.wall[REST] < 0.2 * sum(times.wall.values())

    table = (profiled / "profile" / "table.txt").read_text()
    assert "where a step's time goes" in table
    assert "Recorded: 3 steps. To warm up: 5.\n" in table
    assert "grid backward (agent, EFE, solver)" in table
    assert str(profiled / "profile" / "trace.json.gz") in "".join(table.splitlines())
    assert "grid backward (agent, EFE, solver)" in capsys.readouterr().err


def take_steps(folder, number, *, steps, ahead, error=None):
    """The profiler of a run that takes so many steps, and then may fail."""
    with StepProfiler(folder, steps, ahead, torch.device("cpu")) as profiler:
        for _ in each_in_region(DATA, range(number)):
            with region(STEP), region("agent"):
                torch.ones(3).sum()
            profiler.step(0.1)
        if error is not None:
            raise error


def test_a_run_with_too_few_steps_records_what_there_is_and_says_so(tmp_path):
    take_steps(tmp_path, 4, steps=100, ahead=4)
    assert step_times(read_trace(tmp_path)).steps == 3
    assert (
        "Recorded: 3 steps of 100, the run had no more. To warm up: 1.\n"
        in (tmp_path / "profile" / "table.txt").read_text()
    )


def test_fewer_steps_warm_up_rather_than_that_fewer_are_recorded(tmp_path):
    take_steps(tmp_path, 4, steps=2, ahead=4)
    assert step_times(read_trace(tmp_path)).steps == 2
    assert "Recorded: 2 steps. To warm up: 2.\n" in (tmp_path / "profile" / "table.txt").read_text()


def test_steps_after_the_recorded_ones_are_not_in_it(tmp_path):
    take_steps(tmp_path, 20, steps=2, ahead=20)
    assert step_times(read_trace(tmp_path)).steps == 2
    assert "Recorded: 2 steps. To warm up: 5.\n" in (tmp_path / "profile" / "table.txt").read_text()


def test_a_run_that_ends_before_anything_was_recorded_says_so(tmp_path, caplog):
    take_steps(tmp_path, 1, steps=2, ahead=1)
    assert list(tmp_path.iterdir()) == []
    (logged,) = [record.getMessage() for record in caplog.records]
    assert logged == ("--profile 2: nothing was recorded, because the run ended within the steps that warm up (1).")


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "profile").write_text("")
    take_steps(tmp_path, 20, steps=2, ahead=20)
    (logged,) = [record.getMessage() for record in caplog.records]
    assert logged.startswith(f"The profile could not be written into {tmp_path / 'profile'}: ")


def test_a_run_that_fails_leaves_no_profile_and_its_own_error(tmp_path):
    with pytest.raises(ValueError, match="broken"):
        take_steps(tmp_path, 7, steps=5, ahead=10, error=ValueError("broken"))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_what_was_recorded(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        take_steps(tmp_path, 7, steps=5, ahead=10, error=KeyboardInterrupt())
    assert step_times(read_trace(tmp_path)).steps == 2


def test_without_the_flag_nothing_is_recorded(tmp_path):
    take_steps(tmp_path, 10, steps=0, ahead=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("steps", "ahead", "warm_up"), [(10, 1000, 5), (10, 15, 5), (10, 12, 2), (10, 10, 1), (10, 3, 1), (1, 1, 1)]
)
def test_steps_to_warm_up(tmp_path, steps, ahead, warm_up):
    assert StepProfiler(tmp_path, steps, ahead, torch.device("cpu")).warm_up == warm_up
