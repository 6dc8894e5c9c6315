""""""

import math
from dataclasses import replace

import pytest
import torch

from arcdist.checkpoint.state import gather_moments, gather_weights
from arcdist.data import Share
from arcdist.training.step import StepSettings, admits, sample_views, train_step


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.5, [False, False, True, True]), (1.045, [False, False, False, True])],  # Above 1 exact grids alone.
)
def test_memory_admits_what_exceeds_the_threshold_and_every_exact_grid(threshold, expected):
    assert admits(torch.tensor([0.4, 0.5, 0.6, 1.0]), threshold).tolist() == expected


ALL, NONE = -1.0, 10.0
"""Thresholds of the memory that admit every query, and none but exact ones."""


def step(session, batch, number=0, size_weight=1.0, threshold=NONE, **told):
    settings = StepSettings(
        config=session.config, number=number, size_weight=size_weight, memory_threshold=threshold, **told
    )
    noise = session.refinement_noise(batch, 0)
    return train_step(batch, session.models, session.engines, noise, settings)


def first_batch(session, rows=range(4)):
    (batch,) = session.training.load([list(rows)], 0, session.device)
    return batch


def weights(session):
    """A copy of all that is trained, remembered or averaged, moments and cached prompts included."""
    kept = session.models.prompts.lookup(session.training.queries.ids, 0)
    prompts = {"prompts": kept.output.prompt.clone(), "controls": kept.output.control.clone()}
    return gather_weights(session) | gather_moments(session) | prompts


def assert_unchanged(before, session):
    after = weights(session)
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []


def test_the_report_has_the_documented_numbers(build_tiny):
    session = build_tiny()
    report = step(session, first_batch(session))
    assert report.finite
    terms = ("risk", "ambiguity", "step", "consistency", "bidirectional", "z_learning", "prompt", "total")
    rewards = ("mean", "std", "d_acc", "d_size", "d_color", "d_rev")
    assert set(report.metrics) == {
        *(f"efe/{name}" for name in terms),
        *(f"reward/{name}" for name in rewards),
        *("loss", "size_loss", "solver_loss", "reversibility_loss", "train/exact", "train/cell", "mask_ratio"),
        *("solver/confidence", "imbalance"),
    }
    metrics = report.metrics
    assert metrics["imbalance"] == 1.0  # alone
    assert report.queries == 4
    assert report.tokens == sum(session.training.queries.lengths()[:4])
    weights = session.models.efe.weights
    assert metrics["efe/total"] == pytest.approx(sum(weights[name] * metrics[f"efe/{name}"] for name in weights))
    assert 1.0 < metrics["efe/step"] < session.config.agent.max_steps
    assert metrics["mask_ratio"] == pytest.approx(1.0 - metrics["train/cell"])
    assert all(0.0 <= metrics[name] <= 1.0 for name in ("train/exact", "train/cell", "solver/confidence"))


def test_teaching_qwen_to_write_adds_a_number_and_leaves_the_others(build_tiny):
    plain, session = build_tiny(), build_tiny("--qwen.lm_weight=0.5")
    (queries,) = first_batch(session).queries
    inputs, targets = queries.inputs, queries.targets
    with torch.no_grad():
        lesson = session.models.qwen(
            inputs.tokens, inputs.token_mask, inputs.features, targets.target, targets.target_size
        )
    expected, report = step(plain, first_batch(plain)), step(session, first_batch(session))
    assert report.metrics.keys() - expected.metrics.keys() == {"lm_loss"}
    assert report.metrics["lm_loss"] == pytest.approx(lesson.lm_loss.mean().item(), rel=1e-5)
    assert (report.written, expected.written) == (4, 0)
    assert report.tokens == expected.tokens
    for name, value in expected.metrics.items():
        assert report.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_an_output_is_taught_when_its_prompt_is_read(build_tiny):
    session = build_tiny("--qwen.lm_weight=0.5", "--qwen.every=2")
    reports = [step(session, first_batch(session), number=number) for number in range(3)]
    assert [report.written for report in reports] == [4, 0, 4]
    assert ["lm_loss" in report.metrics for report in reports] == [True, False, True]


def test_a_next_token_loss_that_is_not_finite_skips_the_step(build_tiny):
    session = build_tiny("--qwen.lm_weight=0.5")
    with torch.no_grad():
        session.models.qwen.lm_head.rows.weight.mul_(math.nan)
    before = weights(session)
    report = step(session, first_batch(session))
    assert not report.finite
    assert report.not_finite_on == (0,)
    after = weights(session)
    # Not a number is equal to nothing.
    assert [n for n, value in before.items() if "lm_head" not in n and not torch.equal(value, after[n])] == []


def test_a_parameter_group_may_be_named_like_a_metric(build_tiny, monkeypatch):
    other, session = build_tiny(), build_tiny()
    loss = step(other, first_batch(other)).metrics["loss"]
    norms = session.engines.gradient_norms
    monkeypatch.setattr(
        type(session.engines), "gradient_norms", lambda _, **idle: norms(**idle) | {"loss": torch.tensor(7.0)}
    )
    report = step(session, first_batch(session))
    assert report.group_norms["loss"] == 7.0
    assert report.metrics["loss"] == loss != 7.0


def test_the_weight_of_the_size_loss_enters_the_loss_times_the_share_of_the_efe(build_tiny):
    low, high = (
        step(session, first_batch(session), size_weight=weight).metrics
        for weight, session in ((0.5, build_tiny()), (1.0, build_tiny()))
    )
    assert low["size_loss"] == high["size_loss"]
    assert high["loss"] - low["loss"] == pytest.approx(0.7 * 0.5 * high["size_loss"], rel=1e-4)


def test_a_step_moves_every_part(build_tiny):
    session = build_tiny()
    before = weights(session)
    step(session, first_batch(session), threshold=ALL)
    after = weights(session)
    moved = {name for name in before if before[name].shape != after[name].shape or (before[name] != after[name]).any()}
    for prefix in ("qwen.body.", "qwen.prompt_projection.", "qwen.control_mlp.", "grid.agent.", "grid.solver."):
        assert any(name.startswith(prefix) for name in moved), prefix
    for prefix in ("grid.efe.preference", "grid.efe.outcome_statistics", "grid.solver.memory.keys", "refiner."):
        assert any(name.startswith(prefix) for name in moved), prefix
    # The average's first update keeps 2 / 11 of what it was.
    name = "from_prompt.weight"
    expected = torch.lerp(after[f"grid.agent.{name}"], before[f"averaged_agent.{name}"], 2 / 11)
    torch.testing.assert_close(after[f"averaged_agent.{name}"], expected, rtol=0, atol=1e-7)


def test_bf16_leaves_no_matrix_of_the_core_without_a_gradient(build_tiny):
    # The agent plans without a gradient first: what that leaves in autocast's cache must not serve the second time.
    session = build_tiny("--train.precision=bf16")
    batch = first_batch(session)
    assert step(session, batch, number=0).finite
    matrices = {name: p for name, p in session.models.agent.core.named_parameters() if p.ndim >= 2}
    largest = {}
    for name, parameter in matrices.items():
        parameter.register_post_accumulate_grad_hook(lambda p, n=name: largest.update({n: p.grad.abs().max().item()}))
    assert step(session, batch, number=1).finite
    assert len(matrices) > 0
    assert [name for name in matrices if not largest.get(name, 0.0) > 0.0] == []


def test_only_what_the_gate_admits_enters_the_memory(build_tiny):
    session = build_tiny()
    batch = first_batch(session)
    report = step(session, batch, threshold=NONE)
    assert len(session.models.solver.memory) == round(report.metrics["train/exact"] * len(batch))
    step(session, batch, number=1, threshold=ALL)
    assert len(session.models.solver.memory) == len(batch)
    assert (session.models.solver.memory.age[: len(batch)] == 1).all()


def test_a_query_s_refinement_does_not_depend_on_its_batch(build_tiny):
    session = build_tiny()
    (together,) = session.refinement_noise(first_batch(session), epoch=2)
    for row in range(4):
        (alone,) = session.refinement_noise(first_batch(session, [row]), epoch=2)
        assert torch.equal(together[row], alone[0])
    assert not torch.equal(together, session.refinement_noise(first_batch(session), epoch=3)[0])
    assert abs(together.mean()) < 0.2
    assert 0.8 < together.std() < 1.2


def test_the_agent_learns_under_the_first_draw_however_many_follow(build_tiny):
    one, several = (build_tiny("--refiner.rl_delta_scale=30", f"--refiner.draws={draws}") for draws in (1, 3))
    batch = first_batch(one)
    draws = several.refinement_noise(batch, 0)[0]
    assert draws.shape == (4, 3, 257)
    assert torch.equal(draws[:, :1], one.refinement_noise(batch, 0)[0])
    with_one, with_several = step(one, batch), step(several, first_batch(several))
    assert with_several.rewarded == with_one.rewarded == 4
    for name in ("efe/total", "size_loss", "train/cell"):
        assert with_several.metrics[name] == pytest.approx(with_one.metrics[name], rel=1e-5), name
    assert with_several.metrics["reward/mean"] != with_one.metrics["reward/mean"]


@pytest.mark.parametrize("stop", [False, True])
def test_the_report_says_whether_anyone_was_asked_to_stop(build_tiny, stop):
    session = build_tiny()
    assert step(session, first_batch(session), stop=stop).stop is stop
    assert step(session, poisoned(first_batch(session)), stop=stop).stop is stop


def test_the_report_has_the_time_of_process_0_once_for_all_passes(build_tiny):
    session = build_tiny("--train.accumulation=2")
    assert step(session, first_batch(session), seconds=20.5).seconds == 20.5


def poisoned(batch, index=0):
    """The same batch with a feature that is no number, of the last query of one pass."""
    queries = list(batch.queries)
    features = queries[index].inputs.features.clone()
    features[-1, 3] = torch.nan
    queries[index] = replace(queries[index], inputs=replace(queries[index].inputs, features=features))
    return replace(batch, queries=tuple(queries))


@pytest.mark.parametrize("earlier_steps", [0, 1])
@pytest.mark.parametrize(
    ("flags", "bad_pass"),
    [((), 0), (("--train.accumulation=4",), 2), (("--train.accumulation=2", "--qwen.every=5"), 0)],
)
def test_a_number_that_is_not_finite_changes_nothing_at_all(build_tiny, earlier_steps, flags, bad_pass):
    session = build_tiny(*flags)
    batch = first_batch(session)
    for number in range(earlier_steps):
        assert step(session, batch, number, threshold=ALL).finite
    before, rates = weights(session), session.engines.learning_rates()
    # Another batch: the prompts of the first may be kept.
    other = first_batch(session, range(4, 8))
    report = step(session, poisoned(other, bad_pass), number=earlier_steps, threshold=ALL)
    assert not report.finite
    assert report.not_finite_on == (0,)
    assert torch.tensor(report.metrics["loss"]).isnan()
    assert_unchanged(before, session)
    assert session.engines.learning_rates() == rates
    # Nothing of the bad step is left in a gradient: the next one is as if it had not been.
    assert step(session, batch, number=earlier_steps).finite


@pytest.mark.parametrize(
    "place",
    ["qwen.control_mlp.0.weight", "agent.size_head.guess.bias", "efe.preference", "refiner.value_head.bias"],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_all_step_or_none_does(build_tiny, place, value):
    # The loss is finite and all gradients but one are; that one belongs to one optimizer only.
    session = build_tiny()
    before = weights(session)
    part, _, name = place.partition(".")
    parameter = getattr(session.models, part).get_parameter(name)
    handle = parameter.register_hook(lambda gradient: gradient * value)
    report = step(session, first_batch(session), threshold=ALL)
    handle.remove()
    assert torch.tensor(report.metrics["loss"]).isfinite()
    assert not report.finite
    assert report.not_finite_on == ()  # It was not the losses.
    bad = [group for group, norm in report.group_norms.items() if not torch.tensor(norm).isfinite()]
    assert len(bad) == 1
    assert_unchanged(before, session)


def test_a_scaled_step_is_the_same_step_and_an_overflow_is_none(build_tiny, scale_losses):
    # Refinements that change answers, by a policy that looks at the prompt: so that the rewards have a gradient too.
    flags = ("--optim.max_grad_norm=0.5", "--refiner.rl_delta_scale=30")
    plain, scaled = build_tiny(*flags), build_tiny(*flags)
    for session in (plain, scaled):
        with torch.no_grad():
            session.models.refiner.mean_head.weight.fill_(0.01)
    scale_losses(scaled.engines.precision, 1024.0)
    for number in range(2):
        reports = [step(session, first_batch(session), number) for session in (plain, scaled)]
        # Scaling by a power of two is exact, so that not even the rounding differs.
        assert reports[0].metrics["reward/std"] > 0.0
        assert reports[0].metrics == reports[1].metrics
        assert reports[0].group_norms == pytest.approx(reports[1].group_norms, rel=1e-6)
    expected = weights(plain)
    for name, value in weights(scaled).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")

    before = weights(scaled)
    handle = scaled.models.agent.from_prompt.weight.register_hook(lambda gradient: gradient * torch.inf)
    report = step(scaled, first_batch(scaled), number=2)
    handle.remove()
    assert not report.finite
    assert torch.tensor(report.metrics["loss"]).isfinite()
    assert_unchanged(before, scaled)
    assert scaled.engines.precision.loss_scale == 512.0  # halved once for all engines
    assert step(scaled, first_batch(scaled), number=3).finite


def test_a_loss_scale_bears_a_batch_whose_prompts_are_all_cached(build_tiny, scale_losses):
    session = build_tiny("--qwen.every=3")
    scale_losses(session.engines.precision, 1024.0)
    batch = first_batch(session)
    assert step(session, batch, number=0).group_norms["lora"] > 0.0
    report = step(session, batch, number=1)
    assert report.finite
    assert report.group_norms["lora"] == 0.0
    assert report.group_norms["agent"] > 0.0


def test_views_are_drawn_as_often_as_others_whoever_computes_them(build_tiny):
    config = build_tiny("--agent.backward_share=0.5", "--refiner.rewarded_share=0.125").config

    def drawn(positions, step):
        share = Share(rows=tuple(positions), positions=tuple(positions), is_padding=False)
        return sample_views(share, 2, config, step, torch.device("cpu"))

    backward, rewarded = torch.zeros(12), torch.zeros(12)
    for step_number in range(400):
        whole = drawn(range(6), step_number)
        assert torch.equal(whole.backward[whole.rewarded_in_backward], whole.rewarded)
        assert len(whole.backward) == 6
        assert len(whole.rewarded) in (1, 2)
        backward[whole.backward] += 1
        rewarded[whole.rewarded] += 1
        for name in ("backward", "rewarded"):
            parts = [
                positions[row // 2] * 2 + row % 2
                for positions in ((4, 0, 3), (1, 2, 5))
                for row in getattr(drawn(positions, step_number), name).tolist()
            ]
            assert sorted(parts) == getattr(whole, name).tolist()
    assert backward.div(400).tolist() == pytest.approx([0.5] * 12, abs=0.01)
    assert rewarded.div(400).tolist() == pytest.approx([0.125] * 12, abs=0.01)


def test_rewards_of_views_are_means_of_queries(build_tiny):
    config = build_tiny("--refiner.rewarded_share=0.5").config
    share = Share(rows=(0, 1, 2), positions=(0, 1, 2), is_padding=False)
    drawn = replace(
        sample_views(share, 2, config, 0, torch.device("cpu")),
        rewarded=torch.tensor([0, 1, 5]),
    )
    means, weights = drawn.of_queries(torch.tensor([[1.0, 4.0, 7.0], [0.0, 2.0, 5.0]]), torch.full((3,), 1 / 3))
    assert means.tolist() == [[2.5, 1.0], [0.0, 0.0], [7.0, 5.0]]
    # Of 6 views 3 are rewarded, as expected: each of them weighs a third, which its two draws share.
    assert weights.flatten().tolist() == pytest.approx([1 / 3, 1 / 3, 0.0, 0.0, 1 / 6, 1 / 6])


def test_a_share_of_the_views_costs_no_expectation(build_tiny):
    """Of two queries, one of which is planned backwards in each of two steps, both are what they are in one step."""
    whole = build_tiny()
    expected = step(whole, first_batch(whole, range(2))).metrics
    found = []
    for number in range(2):
        session = build_tiny("--agent.backward_share=0.5", "--refiner.rewarded_share=0.5")
        found.append(step(session, first_batch(session, range(2)), number).metrics)
    for name in ("efe/bidirectional", "reversibility_loss", "reward/d_acc", "reward/d_rev", "efe/total"):
        mean = sum(metrics[name] for metrics in found) / 2
        assert mean == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    assert found[0]["reversibility_loss"] != found[1]["reversibility_loss"]


def test_queries_without_a_drawn_view_are_learned(build_tiny):
    session = build_tiny("--agent.backward_share=0.1", "--refiner.rewarded_share=0.1")
    report = step(session, first_batch(session, [0]), number=1)
    assert report.finite
    assert report.metrics["efe/bidirectional"] == report.metrics["reward/mean"] == report.metrics["reward/std"] == 0.0
    assert (report.queries, report.rewarded) == (1, 0)
    assert report.metrics["efe/risk"] > 0
