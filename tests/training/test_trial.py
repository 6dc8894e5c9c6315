"""What a dry run shows: sizes, memory, pace and time; and that it leaves nothing."""

import re

import pytest
from transformers import Qwen2Model

from arcdist.config import load_config
from arcdist.distributed import FailureWatch
from arcdist.errors import ConfigError, OutOfMemoryError
from arcdist.models import training_flops
from arcdist.training import trial
from arcdist.training.run import train
from arcdist.training.trial import Pace, forecast, longest_batch, run_steps


@pytest.fixture
def dry_run(clean_process, tiny_flags, tmp_path, monkeypatch, capsys):
    """The rows of the table that a dry run prints, by their names."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        train(load_config([*tiny_flags, "--dry_run", *flags]), FailureWatch())
        assert list(tmp_path.iterdir()) == []  # not even a run folder
        rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        return {row[0]: row[1] for row in rows if len(row) == 2}

    return run


def number(text):
    return float(re.match(r"[\d,.]+", text)[0].replace(",", ""))


def test_it_shows_sizes_memory_pace_and_time_and_writes_nothing(dry_run, build_tiny):
    rows = dry_run("--max_batches=5", "--epochs=120")
    assert rows["device"] == "cpu, precision no"

    models = build_tiny().models
    qwen = list(models.qwen.parameters())
    total, trained = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+\d", rows["Qwen parameters"]))
    assert total == sum(p.numel() for p in qwen)
    assert trained == sum(p.numel() for p in qwen if p.requires_grad)
    others = (models.agent, models.solver, models.efe, models.refiner)
    assert number(rows["agent, solver, EFE, refiner"]) == sum(p.numel() for m in others for p in m.parameters())

    assert 0.05 < number(rows["peak memory, longest batch included"]) < 64
    queries, tokens = (number(part) for part in re.findall(r"[\d,.]+ \w+/s", rows["pace"]))
    assert tokens > 10 * queries > 0
    # 5 steps of 4 queries at this pace, 120 times; one batch of an epoch is smaller.
    assert number(rows["an epoch of 5 steps"]) == pytest.approx(20 / queries, rel=0.3, abs=0.6)
    assert number(rows["120 epochs"]) == pytest.approx(120 * 20 / queries / 60, rel=0.3, abs=0.1)


def test_it_says_what_a_run_computes_and_costs(dry_run):
    rows = dry_run("--max_batches=5", "--epochs=120", "--qwen.every=2", "--dollars_per_hour=7200")
    minutes, dollars = (float(rows[name].split()[0].strip("$,")) for name in ("120 epochs", "at $7,200.00 an hour"))
    assert dollars == pytest.approx(120 * minutes, rel=0.01, abs=10)  # Rounded to a twentieth of a minute.
    assert rows["longest batch"] == "4 queries of up to 110 tokens"
    step, run = rows["operations of a step, a mean"], rows["operations of the run"]
    assert re.fullmatch(r"[\d.]+ MFLOP: Qwen [\d.]+, agent [\d.]+", step)
    assert number(run) == pytest.approx(600 * number(step) * 1e-3, rel=0.05)
    assert 0 < int(rows["the agent's on padding"].removesuffix("%")) < 100
    assert number(rows["with kept prompts"]) > 0
    others = dry_run("--qwen.every=1")
    assert not {"with kept prompts", "at $7,200.00 an hour"} & others.keys()


def test_a_price_without_a_dry_run_is_refused(tiny_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        train(load_config([*tiny_flags, "--dollars_per_hour", "3"]), FailureWatch())
    assert str(raised.value) == (
        "--dollars_per_hour is for --dry_run, which says what a run costs: give both, or neither."
    )
    assert list(tmp_path.iterdir()) == []


def test_it_says_how_many_epochs_the_time_is_enough_for(dry_run):
    rows = dry_run("--max_batches=5", "--budget_minutes=30")
    queries = number(rows["pace"])
    assert number(rows["30 minutes"]) == pytest.approx(30 * 60 * queries / 20, rel=0.3)
    assert not any(name.endswith(" epochs") for name in rows)


@pytest.fixture
def reads(monkeypatch):
    """What each call gives Qwen's body: how many texts, and how many tokens they are padded to."""
    calls = []
    forward = Qwen2Model.forward

    def read(body, **arguments):
        calls.append(tuple(arguments["input_ids"].shape))
        return forward(body, **arguments)

    monkeypatch.setattr(Qwen2Model, "forward", read)
    return calls


@pytest.mark.parametrize("flags", [(), ("--qwen.lm_weight=1",)])
def test_the_longest_batch_is_that_which_qwen_reads_most_of(build_tiny, reads, flags):
    session = build_tiny(*flags, "--data.max_side=10")
    longest = longest_batch(session)
    run_steps(session, [longest.rows], longest.epoch)
    assert reads == [(4, longest.tokens)]
    run_steps(session, session.training.batches.batches(0))
    assert max(tokens for _, tokens in reads) == longest.tokens


@pytest.mark.parametrize("flags", [(), ("--qwen.lm_weight=1",)])
def test_the_work_is_that_of_what_is_read_and_written(build_tiny, flags):
    session = build_tiny(*flags, "--qwen.every=2", "--qwen.lora_r=2")
    queries, qwen = session.training.queries, session.models.qwen
    rows = [0, 1, 2]
    prompts = [len(qwen.tokenizer.encode(query.context, query.input)) for query in queries.read(rows)]
    outputs = [len(query.target) * (query.target.shape[1] + 1) + 1 for query in queries.read(rows)]
    adapters = sum(p.numel() for name, p in qwen.named_parameters() if ".lora_" in name)
    config = qwen.body.config
    if flags:
        whole = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
        # The head of random weights has a row for each of 10 colours, the end of a row and that of the output.
        expected = training_flops(config, adapters, whole) + 6 * 12 * config.hidden_size * sum(outputs)
    else:
        expected = training_flops(config, adapters, prompts)
    # The second time the prompts are kept, and the third is as the first.
    assert run_steps(session, [rows]).qwen_flops == expected
    session.models.prompts.load_state({}, {})
    assert run_steps(session, [rows, rows, rows]).qwen_flops == 2 * expected


@pytest.mark.parametrize("views", [1, 8])
def test_the_agents_work_is_that_on_its_canvases(build_tiny, views):
    flags = (f"--agent.views_per_reading={views}", f"--data.augment.dihedral={'true' if views > 1 else 'false'}")
    shares = ("--agent.backward_share=0.5", "--refiner.rewarded_share=0.25", "--refiner.draws=3")
    session = build_tiny(*flags, *shares, "--train.accumulation=2")
    agent, rows = session.models.agent, [0, 4, 1, 7]
    (batch,) = session.training.load([rows], 0, session.device)
    expected = 0.0
    for queries in batch.queries:
        seen, pairs, height, width = queries.inputs.context_inputs.shape
        context, ahead, back = agent.flops(height, width, pairs)
        expected += seen * (3 * (context + ahead + 0.5 * back) + 0.25 * 3 * (ahead + back))
    assert len(batch.queries) == 2
    assert run_steps(session, [rows]).agent_flops == pytest.approx(expected, rel=1e-12)


def pace(step_seconds):
    return Pace(steps=4, queries=9, tokens=9, seconds=4 * step_seconds, qwen_flops=0.0, agent_flops=0.0, skipped=0)


@pytest.mark.parametrize("minutes", [1, 30])
def test_a_run_by_time_is_forecast_from_the_time_of_a_step(build_tiny, monkeypatch, minutes):
    monkeypatch.setattr(trial, "_MOST_COUNTED", 600)  # Of 480 in a minute.
    session = build_tiny(f"--budget_minutes={minutes}")
    expected = forecast(session, pace(0.5), pace(0.5))
    assert (expected.epochs, expected.steps, expected.seconds) == (60 * minutes, 120 * minutes, 60 * minutes)
    batches = [batch for epoch in range(60) for batch in session.training.batches.batches(epoch)[:2]]
    measured, first = run_steps(session, batches), run_steps(session, batches[:2])
    assert expected.qwen_flops == pytest.approx(minutes * measured.qwen_flops, rel=0.05)  # Batches are drawn.
    assert expected.agent_flops == pytest.approx(60 * minutes * first.agent_flops, rel=1e-12)
    assert 0.1 * expected.agent_flops < expected.real_agent_flops < expected.agent_flops


def test_a_forecast_knows_what_qwen_will_read(build_tiny, reads):
    session = build_tiny("--qwen.every=5", "--epochs=4", "--max_batches=3", "--batch_size=3")
    epochs = [session.training.batches.batches(epoch)[:3] for epoch in range(4)]
    measured = run_steps(session, [batch for batches in epochs for batch in batches])
    read, trained = sum(texts for texts, _ in reads), sum(len(batch) for batches in epochs for batch in batches)
    assert 0 < read < trained
    expected = forecast(session, pace(3.0), pace(1.0))
    assert expected.qwen_flops == pytest.approx(measured.qwen_flops, rel=1e-12)
    assert (expected.epochs, expected.steps) == (4, 12)
    assert expected.seconds == pytest.approx(12 * (1 + 2 * read / trained), rel=0.01)
    # What is read more slowly than that is noise.
    assert forecast(session, pace(1.0), pace(3.0)).seconds == 36


@pytest.mark.parametrize(
    ("qwen", "agent", "words"),
    [
        (3e15, 1.26e18, "1,263.0 PFLOP: Qwen 3.0, agent 1,260.0"),
        (4e11, 6e11, "1.0 TFLOP: Qwen 0.4, agent 0.6"),
        (0.0, 2.5e9, "2.5 GFLOP: Qwen 0.0, agent 2.5"),
        (2e6, 1e6, "3.0 MFLOP: Qwen 2.0, agent 1.0"),
    ],
)
def test_operations_in_words(qwen, agent, words):
    assert trial._operations(qwen, agent) == words


def test_running_out_of_memory_is_explained_as_in_a_run(dry_run, tmp_path):
    width = 2**50
    with pytest.raises(OutOfMemoryError, match="--dry_run shows the peak"):
        dry_run(f"--qwen.prompt_dim={width}")
    assert list(tmp_path.iterdir()) == []


def test_of_several_views_the_longest_batch_has_the_largest_canvas(build_tiny):
    session = build_tiny("--agent.views_per_reading=2", "--data.augment.dihedral=true")
    longest, queries = longest_batch(session), session.training.queries
    sides = queries.areas.max(axis=1)
    chosen = sides[longest.rows]
    assert sorted(sides)[-len(chosen) :] == sorted(chosen)
    assert longest.tokens == queries.lengths()[longest.rows].max()
