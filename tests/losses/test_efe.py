""""""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arcdist.losses import EFELoss, cell_mean, color_shares, query_mean
from arcdist.losses.efe import (
    PROBABILITY_FLOOR,
    ambiguity,
    bidirectional,
    consistency,
    expected_consistency,
    expected_steps,
    floored,
    preferred_outcome,
    prompt_alignment,
    risk,
    stopping,
    z_learning,
)

MASK = torch.tensor([[[True, True], [False, False]], [[False, False], [False, False]]])


def test_cell_mean_counts_valid_cells_only() -> None:
    values = torch.tensor([[[1.0, 2.0], [50.0, float("nan")]], [[7.0, 7.0], [7.0, 7.0]]])
    assert cell_mean(values, MASK).tolist() == [1.5, 0.0]


def test_cell_mean_keeps_trailing_dimensions() -> None:
    values = torch.arange(16.0).reshape(2, 2, 2, 2)
    assert cell_mean(values, MASK).tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_query_mean_is_uniform_or_weighted() -> None:
    values = torch.tensor([1.0, 3.0])
    assert query_mean(values).item() == 2.0
    assert query_mean(values, torch.tensor([0.75, 0.25])).item() == 1.5


def test_color_shares_give_cells_outside_every_grid_no_color() -> None:
    grid = torch.tensor([[[3, 3, 0, -1]]])
    mask = torch.tensor([[[True, True, True, True]]])
    shares = color_shares(grid, mask)[0]
    assert shares.tolist() == pytest.approx([0.25, 0, 0, 0.5, 0, 0, 0, 0, 0, 0])


TERMS = ["risk", "ambiguity", "step", "consistency", "bidirectional", "z_learning", "prompt"]
ONE_CELL = torch.ones(1, 1, 1, dtype=torch.bool)


def log_cells(*steps: list[float]) -> Tensor:
    """Log-probabilities [T, 1, 1, 1, C] of one cell."""
    return torch.tensor(steps).log().reshape(len(steps), 1, 1, 1, -1)


def random_inputs(
    sizes: list[tuple[int, int]], canvas: tuple[int, int], *, steps: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Arguments of EFELoss for queries of these sizes, with 6 hidden states and a 4-d prompt."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 2.0 * torch.randn(*shape, generator=generator)

    queries, (height, width) = len(sizes), canvas
    mask = torch.zeros(queries, height, width, dtype=torch.bool)
    for row, (h, w) in enumerate(sizes):
        mask[row, :h, :w] = True
    colors = torch.randint(0, 10, (queries, height, width), generator=generator)
    return {
        "forward_logits": normal(steps, queries, height, width, 10),
        "backward_logits": normal(steps, queries, height, width, 10),
        "state_logits": normal(steps, queries, height, width, 6),
        "obs_probs": normal(6, 10).softmax(dim=-1),
        "final_logits": normal(queries, height, width, 10),
        "target": torch.where(mask, colors, -1),
        "prompt_embedding": normal(queries, 4),
        "grid_mask": mask,
    }


def trained_loss(**weights: float) -> EFELoss:
    """A loss whose parameters and statistics are away from their initial values."""
    loss = EFELoss(**weights, prompt_dim=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        loss.outcome_statistics.copy_(torch.rand(10, generator=generator).softmax(dim=-1))
    return loss


def softmax(logits: list[float]) -> list[float]:
    exps = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(exps) for x in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_terms(loss: EFELoss, inputs: dict[str, Any], halting: Tensor | None = None) -> list[dict[str, float]]:
    """The table of the design page in plain Python floats, a cell at a time, for each query."""
    steps, queries, height, width, colors = inputs["forward_logits"].shape
    results = []
    for b in range(queries):
        prompt = inputs["prompt_embedding"][b]
        moved = (loss.prompt_preference_mapper.weight @ prompt + loss.prompt_preference_mapper.bias).tolist()
        projected = (loss.prompt_projection.weight @ prompt + loss.prompt_projection.bias).tolist()
        statistics = loss.outcome_statistics.tolist()
        sums = dict.fromkeys(TERMS, 0.0)
        predicted = [0.0] * colors
        cells = [(i, j) for i in range(height) for j in range(width) if inputs["grid_mask"][b, i, j]]
        for i, j in cells:
            target = int(inputs["target"][b, i, j])
            prior = softmax([x + m for x, m in zip(loss.preference[i, j].tolist(), moved, strict=True)])
            preferred = [0.1 * p + 0.9 * (c == target) for c, p in enumerate(prior)]
            final = softmax(inputs["final_logits"][b, i, j].tolist())
            predicted = [a + p / len(cells) for a, p in zip(predicted, final, strict=True)]
            sums["consistency"] -= math.log(final[target])
            sums["z_learning"] += kl(prior, statistics)
            for t in range(steps):
                forward = softmax(inputs["forward_logits"][t, b, i, j].tolist())
                backward = softmax(inputs["backward_logits"][t, b, i, j].tolist())
                middle = [(a + c) / 2 for a, c in zip(forward, backward, strict=True)]
                states = softmax(inputs["state_logits"][t, b, i, j].tolist())
                entropies = [-sum(p * math.log(p) for p in row) for row in inputs["obs_probs"].tolist()]
                sums["risk"] += kl(forward, preferred) / steps
                sums["bidirectional"] += (kl(forward, middle) + kl(backward, middle)) / 2 / steps
                sums["ambiguity"] += sum(s * h for s, h in zip(states, entropies, strict=True)) / steps
        terms = {name: value / len(cells) for name, value in sums.items()}
        terms["step"] = float(steps)
        if halting is not None:
            alive, expected = 1.0, 0.0
            terms["consistency"] = 0.0
            for t in range(steps):
                expected += alive
                stops = alive * (halting[t, b].item() if t + 1 < steps else 1.0)
                alive -= stops
                share = stops / 2 + 1 / 2 / steps
                for i, j in cells:
                    surprise = -math.log(
                        softmax(inputs["forward_logits"][t, b, i, j].tolist())[inputs["target"][b, i, j]]
                    )
                    terms["consistency"] += share * surprise / len(cells)
            terms["step"] = expected
        norms = math.hypot(*projected) * math.hypot(*predicted)
        terms["prompt"] = 1.0 - sum(a * p for a, p in zip(projected, predicted, strict=True)) / norms
        results.append(terms)
    return results


class TestTermsByHand:
    def test_risk(self) -> None:
        preferred = preferred_outcome(torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, 1, 1, dtype=torch.long))
        assert preferred.flatten().tolist() == pytest.approx([0.95, 0.05])
        # Step 1: 0.5 ln(0.5/0.95) + 0.5 ln(0.5/0.05); step 2: C itself, so 0.
        value = risk(log_cells([0.5, 0.5], [0.95, 0.05]), preferred, ONE_CELL)
        assert value.item() == pytest.approx(0.830366 / 2, abs=1e-6)

    def test_preferred_outcome_of_an_unknown_target_is_the_preference(self) -> None:
        preference = torch.tensor([0.7, 0.3]).reshape(1, 1, 1, 2)
        assert torch.equal(preferred_outcome(preference, torch.full((1, 1, 1), -1)), preference)

    def test_ambiguity(self) -> None:
        states = log_cells([0.25, 0.75])
        value = ambiguity(states, torch.tensor([[1.0, 0.0], [0.5, 0.5]]), ONE_CELL)
        assert value.item() == pytest.approx(0.75 * math.log(2.0), abs=1e-6)

    def test_expected_steps(self) -> None:
        halting = torch.tensor([[0.5, 0.0, 1.0], [0.5, 0.0, 0.0], [0.9, 0.0, 0.0]])
        assert expected_steps(halting).tolist() == pytest.approx([1.75, 3.0, 1.0])

    def test_stopping(self) -> None:
        halting = torch.tensor([[0.5, 0.0, 1.0], [0.5, 0.0, 0.0], [0.9, 0.0, 0.0]])
        expected = [[0.5, 0.0, 1.0], [0.25, 0.0, 0.0], [0.25, 1.0, 0.0]]
        torch.testing.assert_close(stopping(halting), torch.tensor(expected))

    def test_expected_consistency(self) -> None:
        steps, target = log_cells([0.25, 0.75], [0.5, 0.5]), torch.ones(1, 1, 1, dtype=torch.long)
        value = expected_consistency(steps, target, ONE_CELL, torch.tensor([[0.3], [0.0]]))
        assert value.item() == pytest.approx(-0.4 * math.log(0.75) - 0.6 * math.log(0.5), abs=1e-6)

    def test_consistency(self) -> None:
        value = consistency(log_cells([0.25, 0.75])[0], torch.ones(1, 1, 1, dtype=torch.long), ONE_CELL)
        assert value.item() == pytest.approx(-math.log(0.75), abs=1e-6)

    def test_bidirectional(self) -> None:
        value = bidirectional(log_cells([0.5, 0.5]), log_cells([0.25, 0.75]), ONE_CELL)
        assert value.item() == pytest.approx(0.033822, abs=1e-6)

    def test_bidirectional_of_certain_opposites_is_ln_2(self) -> None:
        certain = torch.tensor([0.0, -200.0]).reshape(1, 1, 1, 1, 2)
        value = bidirectional(certain, certain.flip(-1), ONE_CELL)
        assert value.item() == pytest.approx(math.log(2.0), abs=1e-6)

    def test_z_learning(self) -> None:
        preference = torch.tensor([0.8, 0.2]).reshape(1, 1, 1, 2)
        value = z_learning(preference, torch.tensor([0.5, 0.5]), ONE_CELL)
        assert value.item() == pytest.approx(0.192745, abs=1e-6)

    def test_prompt_alignment(self) -> None:
        value = prompt_alignment(torch.tensor([[5.0, 0.0]]), torch.tensor([[3 / 7, 4 / 7]]))
        assert value.item() == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize("halted", [False, True])
def test_equals_a_slow_loop(halted: bool) -> None:
    weights = {"lambda_amb": 0.7, "lambda_z": 0.4}
    loss = trained_loss(**weights)
    inputs = random_inputs([(2, 3), (3, 1), (1, 1)], (3, 4))
    halting = torch.rand(3, 3, generator=torch.Generator().manual_seed(2)) if halted else None
    expected = slow_terms(loss, inputs, halting)

    per_query = loss.per_query(**inputs, halting=halting)
    lambdas = [1.0, 0.7, 0.1, 1.0, 0.5, 0.4, 0.3]
    for b, terms in enumerate(expected):
        assert {name: per_query[name][b].item() for name in TERMS} == pytest.approx(terms, rel=1e-5)
        total = sum(weight * terms[name] for weight, name in zip(lambdas, TERMS, strict=True))
        assert per_query["total"][b].item() == pytest.approx(total, rel=1e-5)

    uniform = loss(**inputs, halting=halting)
    weighted = loss(**inputs, halting=halting, query_weight=torch.tensor([0.5, 0.3, 0.2]))
    assert list(uniform) == [*TERMS, "total"]
    for name in TERMS:
        values = [terms[name] for terms in expected]
        assert uniform[name].item() == pytest.approx(sum(values) / 3, rel=1e-5)
        by_weight = 0.5 * values[0] + 0.3 * values[1] + 0.2 * values[2]
        assert weighted[name].item() == pytest.approx(by_weight, rel=1e-5)


def test_padding_changes_nothing() -> None:
    loss = trained_loss(lambda_amb=1.0)
    narrow = random_inputs([(2, 3), (3, 2)], (3, 3))
    wide = random_inputs([(2, 3), (3, 2)], (7, 9), seed=5)
    for name, value in narrow.items():
        match name:
            case "obs_probs" | "prompt_embedding":
                wide[name] = value
            case "final_logits" | "target" | "grid_mask":
                wide[name][:, :3, :3] = value
            case _:
                wide[name][:, :, :3, :3] = value
    for (name, expected), value in zip(loss.per_query(**narrow).items(), loss.per_query(**wide).values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_batch_composition_changes_nothing() -> None:
    loss = trained_loss(lambda_amb=1.0)
    inputs = random_inputs([(2, 3), (3, 2), (1, 1), (3, 3)], (3, 3))
    together = loss.per_query(**inputs)
    for b in range(4):
        alone = loss.per_query(
            **{
                name: value
                if name == "obs_probs"
                else value[:, b : b + 1]
                if name in ("forward_logits", "backward_logits", "state_logits")
                else value[b : b + 1]
                for name, value in inputs.items()
            }
        )
        for name in TERMS:
            torch.testing.assert_close(alone[name][0], together[name][b], rtol=1e-5, atol=1e-6, msg=name)


def test_a_query_without_cells_adds_nothing_and_no_nan() -> None:
    loss = trained_loss(lambda_amb=1.0)
    inputs = random_inputs([(2, 2), (0, 0)], (2, 2))
    inputs["forward_logits"].requires_grad_()
    inputs["final_logits"].requires_grad_()
    per_query = loss.per_query(**inputs)
    assert all(values[1].item() == 0.0 for values in per_query.values())
    per_query["total"].sum().backward()
    for parameter in [*loss.parameters(), inputs["forward_logits"], inputs["final_logits"]]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert not inputs["final_logits"].grad[1].any()


def test_an_unknown_target_cell_is_left_out_of_consistency_only() -> None:
    loss = trained_loss()
    inputs = random_inputs([(1, 2)], (1, 2))
    known = loss(**inputs)
    inputs["target"][0, 0, 1] = -1
    half_known = loss(**inputs)
    target = int(inputs["target"][0, 0, 0])
    surprise = -inputs["final_logits"][0, 0, 0].log_softmax(dim=-1)[target]
    torch.testing.assert_close(half_known["consistency"], surprise)
    assert half_known["risk"] != known["risk"]
    for name in ("ambiguity", "step", "bidirectional", "z_learning", "prompt"):
        assert half_known[name] == known[name]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6),
    st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6),
)
def test_js_is_symmetric_and_within_0_and_ln_2(first: list[float], second: list[float]) -> None:
    p = torch.tensor(first).log_softmax(dim=-1).reshape(1, 1, 1, 1, 6)
    q = torch.tensor(second).log_softmax(dim=-1).reshape(1, 1, 1, 1, 6)
    value = bidirectional(p, q, ONE_CELL)
    assert 0.0 <= value <= torch.tensor(2.0).log()
    torch.testing.assert_close(value, bidirectional(q, p, ONE_CELL))
    assert bidirectional(p, p, ONE_CELL).item() == pytest.approx(0.0, abs=1e-6)


def test_floored_probabilities_are_a_distribution_above_the_floor() -> None:
    probs = floored(torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert probs.min().item() == PROBABILITY_FLOOR
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_divergences_stay_finite_for_certain_preferences_and_predictions() -> None:
    loss = EFELoss(prompt_dim=4)
    with torch.no_grad():
        loss.preference[..., 0] = 1e4
        loss.outcome_statistics.copy_(torch.eye(10)[1])
    inputs = random_inputs([(2, 2)], (2, 2))
    inputs["forward_logits"] = (1e4 * inputs["forward_logits"]).requires_grad_()
    terms = loss(**inputs)
    # ln(1 / (0.1 x 1e-8)) and ln(1 / 1e-8)
    assert terms["risk"].item() <= 20.73
    assert terms["z_learning"].item() == pytest.approx(18.4207, abs=1e-3)
    terms["total"].backward()
    assert inputs["forward_logits"].grad.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_gradients_reach_every_parameter_and_input_and_not_the_statistics() -> None:
    loss = EFELoss(prompt_dim=4)
    inputs = random_inputs([(2, 3)], (3, 3))
    differentiable = ("forward_logits", "backward_logits", "final_logits", "prompt_embedding")
    for name in differentiable:
        inputs[name].requires_grad_()
    loss(**inputs)["total"].backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for name in differentiable:
        assert inputs[name].grad.abs().sum() > 0, name
    assert not loss.outcome_statistics.requires_grad
    for name in ("forward_logits", "backward_logits"):
        assert not inputs[name].grad[:, :, 2].any()


@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("risk", {"forward_logits", "preference", "mapper"}),
        ("ambiguity", {"state_logits", "obs_probs"}),
        ("step", set()),
        ("consistency", {"final_logits"}),
        ("bidirectional", {"forward_logits", "backward_logits"}),
        ("z_learning", {"preference", "mapper"}),
        ("prompt", {"final_logits", "projection"}),
    ],
)
def test_each_term_teaches_only_what_it_is_about(term: str, reached: set[str]) -> None:
    loss = trained_loss()
    inputs = random_inputs([(2, 2)], (2, 2))
    leaves = {
        name: inputs[name].requires_grad_()
        for name in ("forward_logits", "backward_logits", "state_logits", "obs_probs", "final_logits")
    }
    leaves |= {
        "preference": loss.preference,
        "mapper": loss.prompt_preference_mapper.weight,
        "projection": loss.prompt_projection.weight,
    }
    value = loss(**inputs)[term]
    if value.requires_grad:
        value.backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.any()} == reached


def test_impossible_observations_give_no_nan_at_weight_zero() -> None:
    loss = EFELoss(prompt_dim=4)
    inputs = random_inputs([(2, 2)], (2, 2))
    inputs["obs_probs"] = torch.eye(6, 10).requires_grad_()
    inputs["state_logits"].requires_grad_()
    terms = loss(**inputs)
    assert terms["ambiguity"].item() == pytest.approx(0.0, abs=1e-6)
    terms["total"].backward()
    assert not inputs["obs_probs"].grad.any()
    assert not inputs["state_logits"].grad.any()


def test_float32_inside_autocast_and_for_bfloat16_logits() -> None:
    loss = trained_loss()
    inputs = random_inputs([(3, 3)], (3, 3))
    rounded = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    expected = loss(**{name: value.float() if value.is_floating_point() else value for name, value in rounded.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(**rounded)
    for name, value in terms.items():
        assert value.dtype == torch.float32
        assert value.item() == expected[name].item(), name


def test_observe_moves_the_average_by_a_hundredth() -> None:
    loss = EFELoss(prompt_dim=4)
    loss.observe(3.0 * torch.eye(10)[2])
    expected = torch.full((10,), 0.099)
    expected[2] = 0.109
    torch.testing.assert_close(loss.outcome_statistics, expected)
    loss.observe(torch.zeros(10))
    torch.testing.assert_close(loss.outcome_statistics, expected)


def test_observe_may_come_between_forward_and_backward() -> None:
    loss = trained_loss()
    terms = loss(**random_inputs([(2, 2)], (2, 2)))
    loss.observe(torch.eye(10)[0])
    terms["total"].backward()
    assert loss.preference.grad is not None


def test_everything_exists_at_construction_and_the_preference_starts_uniform() -> None:
    loss = EFELoss()
    assert {name: tuple(value.shape) for name, value in loss.state_dict().items()} == {
        "preference": (30, 30, 10),
        "outcome_statistics": (10,),
        "prompt_preference_mapper.weight": (10, 256),
        "prompt_preference_mapper.bias": (10,),
        "prompt_projection.weight": (10, 256),
        "prompt_projection.bias": (10,),
    }
    preference = loss.preferred_colors(torch.randn(2, 256), 4, 5)
    torch.testing.assert_close(preference, torch.full((2, 4, 5, 10), 0.1))


def test_a_canvas_that_is_too_large_says_which_key_to_raise() -> None:
    with pytest.raises(ValueError, match=r"canvas is 3 x 4.*max_grid_size >= 4"):
        EFELoss(max_grid_size=3, prompt_dim=4)(**random_inputs([(3, 4)], (3, 4)))


def test_stopping_is_worth_what_the_steps_that_it_saves_would_not_improve() -> None:
    """The gradient of lambda_step E[t] + lambda_cons E[CE_t] in the halting of two steps, by hand."""
    inputs = random_inputs([(1, 1)], (1, 1), steps=2)
    loss = EFELoss(lambda_step=0.2, lambda_cons=3.0, prompt_dim=inputs["prompt_embedding"].shape[1])
    halting = torch.tensor([[0.5], [0.5]], requires_grad=True)
    loss(**inputs, halting=halting)["total"].backward()
    first, last = (
        consistency(step.log_softmax(-1), inputs["target"], inputs["grid_mask"]).item()
        for step in inputs["forward_logits"]
    )
    assert halting.grad is not None
    assert halting.grad.flatten().tolist() == pytest.approx([3.0 * (first - last) / 2 - 0.2, 0.0], abs=1e-5)
