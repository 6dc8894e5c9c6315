"""The plain engine against torch by hand: steps, norms, skips, the split backward, loss scaling, state."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arcdist.engine import Engines, ParameterGroup, PlainEngine
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


def schedule(step: int) -> float:
    return 1.0 / (1 + step)


def engine(module: nn.Module, accelerator: Accelerator | None = None, **options) -> PlainEngine:
    groups = [
        ParameterGroup(name=name, parameters=list(getattr(module, name).parameters()), lr=LR[name]) for name in LR
    ]
    settings = {"schedule": schedule, "max_grad_norm": 0.5, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    return PlainEngine(accelerator or Accelerator(cpu=True), module, groups, **settings | options)


def two_engines(scale: float | None = None) -> tuple[Engines, TwoLayers, TwoLayers]:
    """Engines that share an accelerator, whose loss scaler starts at `scale`."""
    accelerator = Accelerator(cpu=True)
    if scale is not None:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    qwen, grid = TwoLayers(1), TwoLayers(2)
    qwen_engine, grid_engine = (engine(module, accelerator) for module in (qwen, grid))
    # Group names are unique over both engines in a run.
    qwen_engine.groups = tuple(
        ParameterGroup(name=f"qwen_{group.name}", parameters=group.parameters, lr=group.lr)
        for group in qwen_engine.groups
    )
    return Engines(qwen=qwen_engine, grid=grid_engine), qwen, grid


def loss_of(module: nn.Module, factor: float = 1.0) -> Tensor:
    return factor * (module(INPUTS) - 3.0).square().sum()


def snapshot(engine: PlainEngine) -> dict[str, Tensor]:
    """Bits of all weights, moments, learning rates."""
    rates = torch.tensor(list(engine.learning_rates().values()), dtype=torch.float64)
    return {**engine.gather_weights(), **engine.gather_moments(), "rates": rates}


def assert_bit_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def split_step(engines: Engines, qwen: nn.Module, grid: nn.Module, factor: float = 1.0) -> dict[str, Tensor]:
    """Both backward passes; `qwen` makes the inputs of `grid`, and meets it in a detached leaf."""
    prompt = qwen(INPUTS)
    border = prompt.detach().requires_grad_()
    features = torch.cat([border, border[:, :1]], dim=1)
    engines.grid.backward(factor * (grid(features) - 3.0).square().sum())
    engines.qwen.backward(prompt, border.grad)
    return engines.gradient_norms()


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


def test_a_group_without_a_gradient_has_norm_0_and_stays():
    module = TwoLayers()
    before = module.first.weight.clone()
    ours = engine(module)
    ours.backward(module.second.bias.sum())
    norms = ours.gradient_norms()
    assert norms["first"].item() == 0.0
    assert norms["first"].device == torch.device(ours.accelerator.device)
    ours.step()
    assert torch.equal(module.first.weight, before)


def test_an_engine_without_any_gradient_steps_to_where_it_is():
    module = TwoLayers()
    ours = engine(module)
    before = ours.gather_weights()
    assert [norm.item() for norm in ours.gradient_norms().values()] == [0.0, 0.0]
    ours.step()
    assert_bit_equal(ours.gather_weights(), before)
    assert ours.learning_rates()["first"] == pytest.approx(0.05)  # its schedule goes on with the other engine's


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


def test_the_split_backward_is_the_joint_one():
    engines, qwen, grid = two_engines()
    joint_qwen, joint_grid = copy.deepcopy(qwen), copy.deepcopy(grid)
    norms = split_step(engines, qwen, grid)

    prompt = joint_qwen(INPUTS)
    (joint_grid(torch.cat([prompt, prompt[:, :1]], dim=1)) - 3.0).square().sum().backward()
    for module, joint in ((qwen, joint_qwen), (grid, joint_grid)):
        for name in ("first.weight", "first.bias", "second.weight", "second.bias"):
            gradient = joint.get_parameter(name).grad
            assert gradient.abs().sum() > 0
            torch.testing.assert_close(module.get_parameter(name).grad, gradient, rtol=1e-6, atol=1e-6)
        assert module.base.weight.grad is None
    assert list(norms) == ["qwen_first", "qwen_second", "first", "second"]


def test_each_engine_is_clipped_by_its_own_norm():
    engines, qwen, grid = two_engines()
    alone = copy.deepcopy(grid)
    alone_engine = engine(alone)
    alone_engine.backward((alone(INPUTS) - 3.0).square().sum())
    engines.grid.backward((grid(INPUTS) - 3.0).square().sum())
    engines.qwen.backward(loss_of(qwen, 1e6))
    for each in (alone_engine, engines):
        each.gradient_norms()
        each.step()
    assert_bit_equal(engines.grid.gather_weights(), alone_engine.gather_weights())


def test_both_step_or_neither_does():
    engines, qwen, grid = two_engines()
    before = [snapshot(each) for each in (engines.qwen, engines.grid)]
    split_step(engines, qwen, grid)
    engines.skip()
    for each, expected in zip((engines.qwen, engines.grid), before, strict=True):
        assert_bit_equal(snapshot(each), expected)
    split_step(engines, qwen, grid)
    engines.step()
    for each, old in zip((engines.qwen, engines.grid), before, strict=True):
        new = each.gather_weights()
        assert all(not torch.equal(new[name], old[name]) for name in new if name.endswith(("weight", "bias")))
    assert engines.learning_rates() == pytest.approx(
        {"qwen_first": 0.05, "qwen_second": 0.01, "first": 0.05, "second": 0.01}
    )


def test_a_loss_scaler_changes_nothing_but_the_scale_of_the_loss():
    scaled, scaled_qwen, scaled_grid = two_engines(scale=1024.0)  # a power of 2 costs no rounding
    plain, qwen, grid = two_engines()
    for _ in range(3):
        scaled_norms = split_step(scaled, scaled_qwen, scaled_grid)
        norms = split_step(plain, qwen, grid)
        for name, norm in norms.items():
            torch.testing.assert_close(scaled_norms[name], norm)
        scaled.step()
        plain.step()
    for ours, other in ((scaled.qwen, plain.qwen), (scaled.grid, plain.grid)):
        expected = snapshot(other)
        for name, value in snapshot(ours).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    assert scaled.accelerator.scaler.get_scale() == 1024.0


def test_an_overflow_skips_both_engines_and_lowers_the_scale_once():
    engines, qwen, grid = two_engines(scale=2.0**20)
    split_step(engines, qwen, grid)
    engines.step()
    before = [snapshot(each) for each in (engines.qwen, engines.grid)]
    norms = split_step(engines, qwen, grid, factor=1e36)  # the loss is finite, its scaled gradient is not
    assert not any(norm.isfinite() for norm in norms.values())
    engines.skip()
    for each, expected in zip((engines.qwen, engines.grid), before, strict=True):
        assert_bit_equal(snapshot(each), expected)
    assert engines.accelerator.scaler.get_scale() == 2.0**19

    split_step(engines, qwen, grid)
    engines.step()  # and goes on
    assert not torch.equal(engines.grid.gather_weights()["first.weight"], before[1]["first.weight"])
    assert engines.accelerator.scaler.get_scale() == 2.0**19


def test_an_overflow_in_one_engine_alone_lowers_the_scale_once():
    engines, qwen, grid = two_engines(scale=2.0**10)
    before = [snapshot(each) for each in (engines.qwen, engines.grid)]
    engines.grid.backward(loss_of(grid))
    engines.qwen.backward(qwen(INPUTS), torch.full((4, 2), math.inf))
    norms = engines.gradient_norms()
    assert norms["first"].isfinite()
    assert not norms["qwen_first"].isfinite()
    engines.skip()
    for each, expected in zip((engines.qwen, engines.grid), before, strict=True):
        assert_bit_equal(snapshot(each), expected)
    assert engines.accelerator.scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("outcome", ["step", "skip"])
def test_a_loss_scaler_allows_a_step_without_the_qwen_engine(outcome):
    engines, _, grid = two_engines(scale=1024.0)  # as with prompts that are all cached
    qwen_before, grid_before = engines.qwen.gather_weights(), engines.grid.gather_weights()
    engines.grid.backward(loss_of(grid))
    assert engines.gradient_norms()["qwen_first"].item() == 0.0
    getattr(engines, outcome)()
    assert_bit_equal(engines.qwen.gather_weights(), qwen_before)
    moved = not torch.equal(engines.grid.gather_weights()["first.weight"], grid_before["first.weight"])
    assert moved is (outcome == "step")


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
    assert set(moments) == {
        f"first.{name}@{moment}" for name in ("weight", "bias") for moment in ("step", "exp_avg", "exp_avg_sq")
    }
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
