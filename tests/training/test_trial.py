"""What a dry run shows: sizes, memory, pace and time; and that it leaves nothing."""

import re

import pytest
from transformers import Qwen2Model

from arcdist.config import load_config
from arcdist.distributed import FailureWatch
from arcdist.errors import OutOfMemoryError
from arcdist.models import training_flops
from arcdist.training.run import train
from arcdist.training.trial import longest_batch, run_steps


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
    assert run_steps(session, [rows]).flops == expected
    session.models.prompts.load_state({}, {})
    assert run_steps(session, [rows, rows, rows]).flops == 2 * expected


def test_running_out_of_memory_is_explained_as_in_a_run(dry_run, tmp_path):
    width = 2**50
    with pytest.raises(OutOfMemoryError, match="--dry_run shows the peak"):
        dry_run(f"--qwen.prompt_dim={width}")
    assert list(tmp_path.iterdir()) == []


def test_of_several_views_the_longest_batch_has_the_largest_canvas(build_tiny):
    session = build_tiny("--agent.views_per_reading=2", "--data.augment.dihedral=true")
    longest, queries = longest_batch(session), session.training.queries
    chosen = queries.sides[longest.rows]
    assert sorted(queries.sides)[-len(chosen) :] == sorted(chosen)
    assert longest.tokens == queries.lengths()[longest.rows].max()
