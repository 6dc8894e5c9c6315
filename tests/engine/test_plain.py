"""The plain engine against torch by hand: steps, norms, passes, skips, loss scaling, state."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arcdist.engine import Engine, OptimizerSettings, ParameterGroup, PlainEngine, Precision
from arcdist.errors import ConfigError

pytestmark = pytest.mark.usefixtures("clean_process")

LR = {"first": 0.1, "second": 0.02}
INPUTS = torch.linspace(-1, 1, 12).reshape(4, 3)


class TwoLayers(nn.Module):
    """A frozen base with two trained groups and a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Linear(3, 3).requires_grad_(False)
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)
        self.register_buffer("count", torch.tensor([float(seed)]))
        self.register_buffer("passing", torch.zeros(1), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(self.base(inputs)).tanh())


def schedule(steps: int, _budget_used: float = 0.0) -> float:
    return 1.0 / (1 + steps)


def engine(module: nn.Module, precision: str = "no", matrices: Sequence[str] = (), **options) -> PlainEngine:
    """AdamW for both layers, but Muon for the weights of `matrices`."""
    apart = [getattr(module, name).weight for name in matrices]
    groups = [
        ParameterGroup(
            name=name,
            parameters=[p for p in getattr(module, name).parameters() if all(p is not matrix for matrix in apart)],
            lr=LR[name],
        )
        for name in LR
    ]
    if apart:
        groups.insert(0, ParameterGroup(name="matrices", parameters=apart, lr=0.05, optimizer="muon"))
    settings = {"schedule": schedule, "max_grad_norm": 0.5, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    return PlainEngine(
        Accelerator(cpu=True),
        module,
        groups,
        OptimizerSettings(**settings | options),
        Precision(precision, torch.device("cpu")),
    )


def loss_of(module: nn.Module, factor: float = 1.0) -> Tensor:
    return factor * (module(INPUTS) - 3.0).square().sum()


def snapshot(engine: PlainEngine) -> dict[str, Tensor]:
    """Bits of all weights, moments, learning rates."""
    rates = torch.tensor(list(engine.learning_rates().values()), dtype=torch.float64)
    return {**engine.gather_weights(), **engine.gather_moments(), "rates": rates}


def assert_bit_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_steps_are_adamw_with_clipping():
    module = TwoLayers()
    plain = copy.deepcopy(module)
    ours = engine(module)
    groups = [{"params": list(getattr(plain, name).parameters()), "lr": lr} for name, lr in LR.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1, betas=(0.8, 0.95), foreach=False, fused=False)
    parameters = [parameter for group in groups for parameter in group["params"]]
    clipped = []
    for step in range(6):
        factor = 1.0 if step < 3 else 1e-3  # above and below the largest norm
        for group, lr in zip(optimizer.param_groups, LR.values(), strict=True):
            group["lr"] = lr * schedule(step)
        optimizer.zero_grad()
        loss_of(plain, factor).backward()
        clipped.append(bool(nn.utils.clip_grad_norm_(parameters, 0.5) > 0.5))
        optimizer.step()

        assert ours.learning_rates() == pytest.approx({name: lr / (1 + step) for name, lr in LR.items()})
        ours.backward(loss_of(module, factor))
        ours.gradient_norms()
        ours.step()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-6, atol=1e-7)
            assert parameter.grad is None
    assert clipped == [True, True, True, False, False, False]


def test_muon_steps_beside_adamw_with_one_clipping_for_both():
    module = TwoLayers()
    plain = copy.deepcopy(module)
    ours = engine(module, matrices=("second", "first"))
    assert ours.learning_rates() == LR | {"matrices": 0.05}
    muon = torch.optim.Muon([plain.second.weight, plain.first.weight], lr=0.05, weight_decay=0.1, momentum=0.95)
    groups = [{"params": [getattr(plain, name).bias], "lr": lr} for name, lr in LR.items()]
    adamw = torch.optim.AdamW(groups, weight_decay=0.1, betas=(0.8, 0.95))
    parameters = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    for step in range(4):
        plain.zero_grad()
        loss_of(plain).backward()
        assert nn.utils.clip_grad_norm_(parameters, 0.5) > 0.5
        for group, peak in zip([*muon.param_groups, *adamw.param_groups], (0.05, *LR.values()), strict=True):
            group["lr"] = peak * schedule(step)
        muon.step()
        adamw.step()

        ours.backward(loss_of(module))
        norms = ours.gradient_norms()
        assert set(norms) == {"first", "second", "matrices"}
        gradients = [module.first.weight.grad, module.second.weight.grad]
        torch.testing.assert_close(norms["matrices"], nn.utils.get_total_norm(gradients))
        ours.step()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-5, atol=1e-5)
    assert ours.learning_rates()["matrices"] == pytest.approx(0.01)


def test_moments_of_muon_round_trip_beside_those_of_adamw():
    source, target = TwoLayers(), TwoLayers()
    first, second = engine(source, matrices=("first",)), engine(target, matrices=("first",))
    steps(first, source, 2)
    moments = first.gather_moments()
    assert {name for name in moments if name.startswith("first.weight")} == {"first.weight@momentum_buffer"}
    second.load_weights(first.gather_weights())
    second.load_moments(moments)
    second.schedule.steps_done = 2
    assert_bit_equal(snapshot(second), snapshot(first))
    for ours, module in ((first, source), (second, target)):
        steps(ours, module, 2)
    assert_bit_equal(snapshot(second), snapshot(first))
    with pytest.raises(
        ConfigError, match=r"missing \['first.weight@exp_avg', .*unknown \['first.weight@momentum_buffer'\]"
    ):
        engine(target).load_moments(moments)
    second.load_moments({})
    assert second.gather_moments() == {}


def steps(ours: PlainEngine, module: nn.Module, count: int) -> None:
    for _ in range(count):
        ours.backward(loss_of(module))
        ours.gradient_norms()
        ours.step()


def test_the_first_step_by_hand():
    module = TwoLayers()
    before = copy.deepcopy(module)
    ours = engine(module, weight_decay=0.0)
    ours.backward(module.second.bias @ torch.tensor([0.3, -0.2]))
    ours.gradient_norms()
    ours.step()
    # AdamW's first step is the learning rate against the sign of the gradient.
    torch.testing.assert_close(module.second.bias, before.second.bias - 0.02 * torch.tensor([1.0, -1.0]))
    for name in ("first.weight", "first.bias", "second.weight", "base.weight"):
        assert torch.equal(module.get_parameter(name), before.get_parameter(name)), name


def test_group_norms_by_hand_before_clipping():
    module = TwoLayers()
    ours = engine(module)
    loss = module.first.bias @ torch.tensor([3.0, 0.0, 0.0, 4.0]) + module.second.bias @ torch.tensor([5.0, 12.0])
    ours.backward(loss)
    norms = ours.gradient_norms()
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx({"first": 5.0, "second": 13.0})
    ours.step()
    # Over all groups together sqrt(25 + 169), clipped to 0.5; the first moment takes a fifth of a gradient.
    clipped = 0.5 / math.sqrt(194) * torch.tensor([5.0, 12.0])
    torch.testing.assert_close(ours.gather_moments()["second.bias@exp_avg"], 0.2 * clipped)


def test_a_group_without_a_gradient_has_norm_0_and_is_only_decayed():
    module = TwoLayers()
    before = module.first.weight.clone()
    ours = engine(module)
    ours.backward(module.second.bias.sum())
    norms = ours.gradient_norms()
    assert norms["first"].item() == 0.0
    assert norms["first"].device == torch.device("cpu")
    ours.step()
    torch.testing.assert_close(module.first.weight, (1 - LR["first"] * 0.1) * before)


def test_an_engine_without_any_gradient_steps_to_where_it_is():
    module = TwoLayers()
    ours = engine(module, weight_decay=0.0)
    before = ours.gather_weights()
    assert [norm.item() for norm in ours.gradient_norms().values()] == [0.0, 0.0]
    ours.step()
    assert_bit_equal(ours.gather_weights(), before)
    assert ours.learning_rates()["first"] == pytest.approx(0.05)  # its schedule goes on with the other engines'


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norms_tell_which_group_is_not_finite(value):
    module = TwoLayers()
    ours = engine(module)
    ours.backward(loss_of(module))
    module.first.weight.grad[0, 0] = value
    norms = ours.gradient_norms()
    assert not norms["first"].isfinite()
    assert norms["second"].isfinite()


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_skip_changes_no_bit(steps_before):
    module = TwoLayers()
    ours = engine(module)
    for _ in range(steps_before):
        ours.backward(loss_of(module))
        ours.gradient_norms()
        ours.step()
    before = snapshot(ours)
    ours.backward(loss_of(module))
    module.first.weight.grad.fill_(math.nan)
    ours.gradient_norms()
    ours.skip()
    assert_bit_equal(snapshot(ours), before)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_skipped_step_leaves_no_trace_in_the_next():
    skipping, straight = TwoLayers(), TwoLayers()
    first, second = engine(skipping), engine(straight)
    first.backward(loss_of(skipping, math.inf))
    first.gradient_norms()
    first.skip()
    for ours, module in ((first, skipping), (second, straight)):
        ours.backward(loss_of(module))
        ours.gradient_norms()
        ours.step()
    assert_bit_equal(snapshot(first), snapshot(second))


def test_passes_add_up_to_one_gradient():
    whole, parts = TwoLayers(), TwoLayers()
    first, second = engine(whole), engine(parts)
    first.backward(loss_of(whole))
    for index, rows in enumerate((slice(0, 1), slice(1, 4))):
        second.backward((parts(INPUTS[rows]) - 3.0).square().sum(), is_last=index == 1)
    for name, norm in first.gradient_norms().items():
        torch.testing.assert_close(second.gradient_norms()[name], norm)
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parts.get_parameter(name).grad, parameter.grad, msg=name)


def test_backward_from_a_tensor_and_its_gradient_is_that_of_their_product():
    direct, split = TwoLayers(), TwoLayers()
    gradient = torch.linspace(-2, 1, 8).reshape(4, 2)
    first, second = engine(direct), engine(split)
    first.backward((direct(INPUTS) * gradient).sum())
    second.backward(split(INPUTS), gradient)
    for name, parameter in direct.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(split.get_parameter(name).grad, parameter.grad, msg=name)


def test_a_parameter_that_no_pass_used_has_a_gradient_of_zero():
    module = TwoLayers()
    ours = engine(module)
    ours.backward(module.second.bias.sum())
    assert module.first.weight.grad is None
    ours.gradient_norms()
    for parameter in (*module.first.parameters(), module.second.weight):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    assert module.second.bias.grad.tolist() == [1.0, 1.0]
    assert module.base.weight.grad is None


def test_a_loss_scale_multiplies_losses_and_leaves_the_norms_and_the_step(scale_losses):
    scaled, plain = TwoLayers(), TwoLayers()
    first, second = engine(scaled), engine(plain)
    scale_losses(first.precision, 1024.0)
    for _ in range(3):
        first.backward(loss_of(scaled))
        second.backward(loss_of(plain))
        assert torch.equal(scaled.second.bias.grad, 1024.0 * plain.second.bias.grad)
        norms = second.gradient_norms()
        for name, norm in first.gradient_norms().items():
            assert torch.equal(norm, norms[name])
        for each in (first, second):
            each.step()
    assert_bit_equal(snapshot(first), snapshot(second))


def test_a_gradient_that_is_given_is_scaled_already(scale_losses):
    module = TwoLayers()
    ours = engine(module)
    scale_losses(ours.precision, 8.0)
    ours.backward(module.second.bias, torch.tensor([24.0, 32.0]))
    assert ours.gradient_norms()["second"].item() == 5.0


def test_the_forward_pass_has_the_engine_s_precision():
    module = TwoLayers()
    assert torch.equal(engine(module)(INPUTS), module(INPUTS))
    halves = engine(module, "bf16")(INPUTS)
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), module(INPUTS), rtol=0.05, atol=0.05)
    assert module.first.weight.dtype == torch.float32


def test_what_it_holds():
    module = TwoLayers()
    ours = engine(module)
    assert isinstance(ours, Engine)
    assert ours.module is module
    assert not ours.in_lockstep
    assert ours.parameter_counts() == (12 + 16 + 10, 16 + 10)
    replicated = list(ours.replicated())
    # The things themselves: what is trained, and the persistent buffer.
    assert {id(tensor) for tensor in replicated} == {
        id(tensor) for tensor in (*module.first.parameters(), *module.second.parameters(), module.count)
    }


def test_weights_are_the_trained_ones_and_persistent_buffers():
    module = TwoLayers()
    weights = engine(module).gather_weights()
    assert set(weights) == {"first.weight", "first.bias", "second.weight", "second.bias", "count"}
    assert all(value.device.type == "cpu" and not value.requires_grad for value in weights.values())
    with torch.no_grad():
        module.first.weight.zero_()
    assert weights["first.weight"].abs().sum() > 0  # a copy


def test_moments_by_parameter_name():
    module = TwoLayers()
    ours = engine(module)
    assert ours.gather_moments() == {}
    ours.backward(module.first(INPUTS).sum())
    gradient = module.first.bias.grad.clone()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in module.first.parameters()))
    ours.gradient_norms()
    ours.step()
    moments = ours.gather_moments()
    assert ours.gather_weights(keep=False) == ours.gather_moments(keep=False) == {}
    assert set(moments) == {
        f"{layer}.{name}@{moment}"
        for layer in ("first", "second")
        for name in ("weight", "bias")
        for moment in ("step", "exp_avg", "exp_avg_sq")
    }
    assert not moments["second.weight@exp_avg"].any()
    clipped = gradient * 0.5 / norm
    torch.testing.assert_close(moments["first.bias@exp_avg"], 0.2 * clipped)
    torch.testing.assert_close(moments["first.bias@exp_avg_sq"], 0.05 * clipped.square())
    assert moments["first.bias@step"].item() == 1.0


def test_weights_round_trip():
    source, target = TwoLayers(seed=1), TwoLayers(seed=2)
    base = target.base.weight.clone()
    weights = engine(source).gather_weights()
    ours = engine(target)
    ours.load_weights(weights)
    assert_bit_equal(ours.gather_weights(), weights)
    assert torch.equal(target.base.weight, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("second.bias"), r"missing \['second.bias'\], unknown \[\]"),
        (lambda weights: weights.pop("count"), r"missing \['count'\]"),
        (lambda weights: weights.update(third=torch.zeros(1)), r"missing \[\], unknown \['third'\]"),
        (lambda weights: weights.update({"base.bias": torch.zeros(3)}), r"missing \[\], unknown \['base.bias'\]"),
        (lambda weights: weights.update({"first.bias": torch.zeros(7)}), r"size mismatch for first.bias"),
    ],
)
def test_weights_of_another_model_are_refused(change, message):
    module = TwoLayers()
    ours = engine(module)
    base, weights = module.base.bias.clone(), ours.gather_weights()
    change(weights)
    with pytest.raises(ConfigError, match=message):
        ours.load_weights(weights)
    assert torch.equal(module.base.bias, base)
