import json

import pytest

from arcdist.config import load_config
from arcdist.doctor import fit
from arcdist.doctor.finding import Verdict
from arcdist.doctor.fit import Fit, judge_fit, try_longest_batch
from arcdist.engine.platform import start_platform
from arcdist.errors import NotFiniteError, OutOfMemoryError
from arcdist.training.trial import Pace, longest_batch, run_steps

GIB = 2**30


def text(peak, capacity=80):
    return Fit(peak=int(peak * GIB), capacity=capacity * GIB, queries=16, tokens=6517).to_text()


def test_one_process_speaks_for_itself():
    finding = judge_fit([text(41.25)])
    assert (finding.found, finding.verdict) == (
        "16 queries of up to 6,517 tokens: peak 41.25 of 80.0 GiB",
        Verdict.OK,
    )


def test_the_one_with_least_left_speaks_for_all():
    finding = judge_fit([text(60.0), text(32.0, capacity=40), None, text(59.0)])
    assert finding.found.endswith("peak 32.00 of 40.0 GiB on rank 1, which has least left")


@pytest.mark.parametrize(("peak", "verdict"), [(71.9, Verdict.OK), (72.1, Verdict.WARN)])
def test_a_close_fit_is_worth_a_warning(peak, verdict):
    finding = judge_fit([text(peak)])
    assert finding.verdict is verdict
    assert ("--batch_size" in finding.advice) == (verdict is Verdict.WARN)


@pytest.fixture
def tried(clean_process, tiny_flags):
    """Try the longest batch of a tiny run."""

    def run(*flags):
        config = load_config([*tiny_flags, *flags]).config
        return try_longest_batch(config, start_platform(config))

    return run


@pytest.mark.parametrize(("every", "reads"), [(1, 2), (3, 1)])
def test_the_longest_batch_is_trained_on_until_qwen_reads_it_with_moments(tried, monkeypatch, every, reads):
    sessions, calls = [], []

    def steps(session, batches):
        read = []
        hook = session.models.qwen.register_forward_hook(lambda *_: read.append(None))
        has_moments = bool(session.engines.qwen.gather_moments())
        pace = run_steps(session, batches)
        hook.remove()
        calls.append((len(batches), has_moments, len(read)))
        sessions.append(session)
        return pace

    monkeypatch.setattr(fit, "run_steps", steps)
    measured = tried(f"--qwen.every={every}")
    assert calls == [(1, False, 1), (every + 1, True, reads)]
    lengths = sessions[0].training.queries["length"][:]
    assert measured.queries == 4
    assert measured.tokens == max(lengths) == max(lengths[row] for row in longest_batch(sessions[0]))
    assert 0.1 * GIB < measured.peak < measured.capacity
    assert Fit(**json.loads(measured.to_text())) == measured


def test_running_out_of_memory_names_the_knobs(tried):
    width = 2**50
    with pytest.raises(OutOfMemoryError, match="--batch_size"):
        tried(f"--qwen.prompt_dim={width}", f"--refiner.rl_prompt_dim={width}", f"--refiner.rl_ctrl_dim={width}")


def test_steps_that_are_never_finite_are_told(tried, monkeypatch):
    calls = []

    def steps(_session, batches):
        calls.append(batches)
        return Pace(steps=1, queries=4, tokens=9, seconds=1.0, flops=1.0, skipped=1)

    monkeypatch.setattr(fit, "run_steps", steps)
    with pytest.raises(NotFiniteError, match="in 10 steps in a row"):
        tried()
    assert len(calls) == 10
