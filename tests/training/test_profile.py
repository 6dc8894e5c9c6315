"""Runs with `--profile`: the same numbers, and two files that say where the time went."""

import gzip
import json

import pytest
import torch
from shared.measured import without_measured

from arcdist.distributed import Heartbeat
from arcdist.regions import DATA, STEP, each_in_region, region
from arcdist.tracking.step_times import REST, step_times
from arcdist.training.loop import Loop
from arcdist.training.profile import StepProfiler

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
        loop = Loop(build_tiny(*flags), folder, Heartbeat(folder, 0), profiled_steps=profiled_steps)
        loop.run()
        return folder, loop

    return run


def read_steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def read_trace(folder):
    with gzip.open(folder / "profile" / "trace.json.gz") as content:
        return json.load(content)


@pytest.mark.slow
def test_a_profiled_run_has_the_same_numbers_and_leaves_trace_and_table(run, capsys):
    flags = ("--data.max_tasks=12", "--max_batches=10", "--save_every=100")
    plain, _ = run("plain", *flags, profiled_steps=0)
    profiled, loop = run("profiled", *flags, profiled_steps=3)
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
    seconds = [seconds for _, _, seconds in loop.pace._steps][5:8]
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
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == ("--profile 2: nothing was recorded, because the run ended within the steps that warm up (1).")


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "profile").write_text("")
    take_steps(tmp_path, 20, steps=2, ahead=20)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"The profile could not be written into {tmp_path / 'profile'}: ")


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
