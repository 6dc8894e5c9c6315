"""One batch, however it is cut into passes: the same metrics, the same weights, the same memory.

Passes that repeat a query as padding leave no trace.
"""

from dataclasses import replace

import pytest
import torch

from arcdist.checkpoint.state import gather_moments, gather_weights
from arcdist.data import Share
from arcdist.training.step import StepSettings, train_step

ROWS = (range(8), range(4, 12), range(8), (11, 3, 8, 0, 9))
"""Batches that share queries, so that some prompts are kept, all are, or none is; the last divides unevenly."""

VIEWS = ("--agent.views_per_reading=3", "--agent.backward_share=0.5", "--refiner.rewarded_share=0.25")
"""Of several views of a query, some are planned backwards, and some of these are rewarded."""

DRAWS = ("--refiner.draws=3", "--agent.task_vector_dropout=0.5", "--agent.dropout=0.2")
"""Of several draws of the policy the agent learns under one, without some channels; some queries hide their task."""


def load(session, rows):
    (batch,) = session.training.load([list(rows)], 0, session.device)
    return batch


def step(session, batch, number):
    settings = StepSettings(config=session.config, number=number, size_weight=0.75, memory_threshold=-1.0)
    report = train_step(batch, session.models, session.engines, session.refinement_noise(batch, 0), settings)
    assert report.finite
    return report


def state(session):
    """All that is trained, remembered or averaged, and the prompts that are kept."""
    kept = session.models.prompts.lookup(session.training.queries.ids, 0)
    prompts = {"prompts": kept.output.prompt, "controls": kept.output.control}
    return gather_weights(session) | gather_moments(session) | prompts


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def with_rewards(session):
    """Have the refiner change answers, by a policy that looks at the prompt: so that rewards have gradients too."""
    refiner = session.models.refiner
    refiner.rl_delta_scale = 30.0
    with torch.no_grad():
        refiner.mean_head.weight.fill_(0.01)
    return session


def trajectory(session, change=lambda batch: batch):
    """Reports of a few steps, and where they lead."""
    with_rewards(session)
    reports = [step(session, change(load(session, rows)), number) for number, rows in enumerate(ROWS)]
    return reports, state(session)


def padded(session, batch, position=0):
    """The same batch with one more pass, which repeats a query."""
    row = batch.partition.rows[position]
    share = Share(rows=(row,), positions=(position,), is_padding=True)
    shares = (*batch.shares, share)
    (queries,) = load(session, [row]).queries[:1]
    return replace(
        batch, shares=shares, queries=(*batch.queries, queries), partition=replace(batch.partition, shares=(shares,))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--qwen.every=3",),
        ("--qwen.gradient_checkpointing=true", "--qwen.every=2"),
        ("--qwen.lm_weight=0.5", "--qwen.every=3"),
        (*VIEWS, "--qwen.lm_weight=0.5", "--qwen.every=3"),
        (*VIEWS, *DRAWS),
    ],
    ids=["plain", "kept prompts", "checkpointing", "writing", "views", "draws"],
)
def test_passes_change_no_number(build_tiny, flags):
    def run(accumulation):
        fast = ("--agent_lr=1e-3", "--qwen_lr=1e-3")
        session = build_tiny("--batch_size=8", f"--train.accumulation={accumulation}", *fast, *flags)
        for engine in session.engines.by_name().values():
            for group in engine.optimizers[0].param_groups:
                # AdamW divides a gradient by its own size. Where that is no more than rounding, so would the step be.
                group["eps"] = 1e-3
        return trajectory(session)

    expected, weights = run(1)
    assert max(report.metrics["reward/std"] for report in expected) > 0.05
    for accumulation in (2, 4, 8):
        reports, others = run(accumulation)
        for one, other in zip(expected, reports, strict=True):
            assert (one.queries, one.tokens, one.written) == (other.queries, other.tokens, other.written)
            assert one.metrics.keys() == other.metrics.keys()
            for name, value in (one.metrics | one.group_norms).items():
                if name != "imbalance":
                    found = (other.metrics | other.group_norms)[name]
                    assert found == pytest.approx(value, rel=1e-5, abs=1e-5), (accumulation, name)
        assert others.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(others[name], value, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        # The order of the memory is that of the batch, whichever pass solved what.
        assert torch.equal(others["grid.solver.memory.keys"], weights["grid.solver.memory.keys"])


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--qwen.lora_dropout=0.3", "--qwen.every=3"),
        ("--train.accumulation=2",),
        ("--train.accumulation=2", "--qwen.lora_dropout=0.3", "--qwen.gradient_checkpointing=true"),
        ("--qwen.lora_dropout=0.3", "--qwen.every=3", "--qwen.lm_weight=0.5"),
        (*VIEWS, "--qwen.every=3"),
        (*VIEWS, *DRAWS),
    ],
    ids=[
        "one pass",
        "one pass, dropout",
        "two passes",
        "two passes, dropout",
        "one pass, dropout, writing",
        "views",
        "draws",
    ],
)
def test_a_pass_of_padding_changes_not_a_bit(build_tiny, flags):
    """Where it makes two passes of one, Qwen reads twice what it read once: with the same units dropped."""
    plain, with_padding = build_tiny(*flags), build_tiny(*flags)
    expected, weights = trajectory(plain)
    reports, others = trajectory(with_padding, lambda batch: padded(with_padding, batch, position=2))
    assert reports == expected
    assert_equal(others, weights)


@pytest.mark.parametrize("lm_weight", [0.0, 0.5])
@pytest.mark.parametrize("passes", [1, 2])
def test_reading_for_the_others_changes_not_a_bit(build_tiny, passes, lm_weight):
    """Engines that meet in each forward pass have every process read, also where all its prompts are kept."""
    flags = ("--qwen.every=4", f"--train.accumulation={passes}", f"--qwen.lm_weight={lm_weight}")
    plain, in_lockstep = build_tiny(*flags), build_tiny(*flags)
    in_lockstep.engines.qwen.in_lockstep = True
    read = []
    in_lockstep.models.qwen.register_forward_hook(lambda _module, given, _output: read.append(len(given[0])))
    expected, weights = trajectory(plain)
    reports, others = trajectory(in_lockstep)
    # Of one pass that is all kept there is no other to read for.
    assert (1 in read) == (passes > 1)
    assert reports == expected
    assert_equal(others, weights)


def test_a_pass_of_bf16_leaves_no_matrix_without_a_gradient(build_tiny):
    # Qwen reads without a graph first: what that leaves in autocast's cache must not serve the second time.
    session = build_tiny("--train.precision=bf16", "--train.accumulation=2")
    step(session, load(session, ROWS[0]), 0)  # away from LoRA's zeros
    largest = {}
    for name, parameter in session.models.qwen.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p, n=name: largest.update({n: p.grad.abs().max()}))
    step(session, load(session, ROWS[0]), 1)
    trained = [name for name, parameter in session.models.qwen.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if not largest.get(name, 0.0) > 0.0] == []


@pytest.mark.parametrize("lm_weight", [0.0, 0.5])
def test_the_gradient_is_that_of_the_whole_batch(build_tiny, lm_weight):
    """Before any optimizer: the sum over passes is the gradient of the mean over all queries."""

    flags = ("--batch_size=8", f"--qwen.lm_weight={lm_weight}")

    def gradients(accumulation):
        session = with_rewards(build_tiny(*flags, f"--train.accumulation={accumulation}"))
        found = {}

        def read(*_):
            for engine, each in session.engines.by_name().items():
                parameters = each.module.named_parameters()
                found.update({f"{engine}.{name}": p.grad.clone() for name, p in parameters if p.grad is not None})

        session.engines.qwen.optimizers[0].register_step_pre_hook(read)
        step(session, load(session, ROWS[3]), 0)
        return found

    # Eight passes over five queries: three are padding.
    expected, found = gradients(1), gradients(8)
    assert found.keys() == expected.keys()
    # Clipped by the time they are read, each engine by its own norm.
    for name, value in expected.items():
        atol = 1e-5 * value.abs().max().item()  # The rounding of a sum goes with its largest terms.
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
