"""Losses and gradients that are not finite, step after step."""

import json
import random

import pytest

from arcdist.checkpoint.store import checkpoints, load_checkpoint

pytestmark = pytest.mark.slow


def assert_goes_on_from_last_good(start, poisoned, seed, processes):
    numbers = random.Random(seed)
    good, part, rank = numbers.randint(1, 5), numbers.choice(["features", "qwen", "grid"]), numbers.randrange(processes)
    poison = {"POISON": json.dumps(dict.fromkeys(range(good, 30), (part, rank)))}
    flags = ("--output.save_every", "1", "--output.keep_last", "100", "--curriculum.memory_gate", "0")
    attempt = start(*flags, processes=processes, launcher=False, program=poisoned, environment=poison)
    assert attempt.wait() == 5, attempt.output
    assert f"not_finite at step {good + 10}: " in attempt.output
    last = checkpoints(start.run / "checkpoints")[-1]
    assert last.name == f"step_{good + 10:08d}"
    saved, expected = load_checkpoint(last), load_checkpoint(last.with_name(f"step_{good:08d}"))
    for now, then in ((saved.weights, expected.weights), (saved.moments, expected.moments)):
        assert now.keys() == then.keys()
        assert [name for name, value in then.items() if not now[name].equal(value)] == []
    resumed = start("--resume", *flags, "--epochs", "4", processes=processes, launcher=False)
    assert resumed.wait() == 0, resumed.output
    assert resumed.resumed_from == good + 10
    assert resumed.last_step() == 20
    records = [json.loads(line) for line in (start.run / "steps.jsonl").read_text().splitlines()]
    assert records[-1]["skipped_steps"] == 10


def test_ten_bad_steps_leave_the_last_good_state_to_go_on_from(start, poisoned):
    assert_goes_on_from_last_good(start, poisoned, 1, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(10, 16))
def test_so_do_they_at_any_step_on_either_rank(start, poisoned, seed):
    assert_goes_on_from_last_good(start, poisoned, seed, 2)
