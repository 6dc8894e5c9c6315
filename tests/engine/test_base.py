"""Several engines: two backward passes that meet in a tensor, and all of them step or none does."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arcdist.engine import Engines, OptimizerSettings, ParameterGroup, PlainEngine, Precision, on_cpu
from arcdist.engine.base import Schedule, check_names, trainable, trained_state
from arcdist.errors import ConfigError


@pytest.fixture
def optimizer():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.5, 2.0)]
    return torch.optim.AdamW(groups, lr=1.0)


def test_rates_are_peaks_times_the_share_of_the_steps_done(optimizer):
    schedule = Schedule([optimizer], lambda steps, _: 1 / (1 + steps))
    assert schedule.rates() == [0.5, 2.0]
    schedule.steps_done += 1
    assert schedule.rates() == [group["lr"] for group in optimizer.param_groups] == [0.25, 1.0]
    schedule.steps_done += 2
    assert schedule.rates() == [0.125, 0.5]


def test_a_schedule_goes_on_anywhere_also_after_its_optimizer_was_loaded(optimizer):
    schedule = Schedule([optimizer], lambda steps, _: 1 / (1 + steps))
    optimizer.load_state_dict(optimizer.state_dict())
    schedule.steps_done = 3
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.5]
    schedule.steps_done = 0
    assert schedule.rates() == [0.5, 2.0]


def test_rates_follow_the_time_that_is_used(optimizer):
    schedule = Schedule([optimizer], lambda steps, used: steps * (1 - used))
    schedule.steps_done = 2
    schedule.budget_used = 0.75
    assert schedule.rates() == [group["lr"] for group in optimizer.param_groups] == [0.25, 1.0]
    schedule.steps_done += 1
    assert schedule.rates() == [0.375, 1.5]


CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_forward_passes_compute_in_the_precision_and_weights_stay_float32(name, dtype):
    layer = torch.nn.Linear(2, 2)
    with Precision(name, CPU).autocast():
        output = layer(torch.ones(1, 2))
    assert output.dtype == dtype
    output.sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32


def test_there_is_no_autocast_left_afterwards():
    with Precision("bf16", CPU).autocast():
        pass
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("name", ["no", "bf16"])
def test_only_float16_scales_losses(name):
    precision = Precision(name, CPU)
    assert not precision.scales_losses
    for finite in (True, False, *[True] * 5000):
        precision.update(finite=finite)
    assert precision.loss_scale == 1.0


def test_the_scale_of_float16_begins_at_65536_and_is_halved_by_each_overflow():
    precision = Precision("fp16", CPU)
    assert precision.scales_losses
    assert precision.loss_scale == 65536.0
    for scale in (32768.0, 16384.0, 8192.0):
        precision.update(finite=False)
        assert precision.loss_scale == scale


def test_two_thousand_good_steps_in_a_row_double_the_scale():
    precision = Precision("fp16", CPU)

    def steps(count, *, finite=True):
        for _ in range(count):
            precision.update(finite=finite)
        return precision.loss_scale

    assert steps(1999) == 65536.0
    assert steps(1, finite=False) == 32768.0
    assert steps(1999) == 32768.0  # counted anew after the overflow
    assert steps(1) == 65536.0
    assert steps(1999) == 65536.0  # and after the doubling
    assert steps(1) == 131072.0


def test_a_scale_of_a_power_of_two_is_undone_without_rounding():
    precision = Precision("fp16", CPU)
    gradients = torch.linspace(-1, 1, 101)
    assert torch.equal(gradients * precision.loss_scale * (1.0 / precision.loss_scale), gradients)


def test_a_scale_goes_on_where_another_run_left_it():
    first, other = Precision("fp16", CPU), Precision("fp16", CPU)
    for finite in (False, *[True] * 1999):
        first.update(finite=finite)
    assert first.state() == {"scale": 32768.0, "good_steps": 1999}
    other.load_state(first.state())
    assert other.state() == first.state()
    other.update(finite=True)
    assert other.loss_scale == 65536.0


@pytest.mark.parametrize(
    ("name", "other", "scale"), [("no", "fp16", 65536.0), ("bf16", "fp16", 65536.0), ("fp16", "no", 1.0)]
)
def test_a_scale_of_another_precision_is_not_taken_over(name, other, scale):
    first, second = Precision(name, CPU), Precision(other, CPU)
    for finite in (False, True):
        first.update(finite=finite)
    second.load_state(first.state())
    assert second.state() == {"scale": scale, "good_steps": 0}


@pytest.fixture
def module():
    """A frozen layer, a trained one, and two buffers, of which one is no part of the state."""
    module = nn.ModuleDict({"frozen": nn.Linear(2, 2).requires_grad_(False), "trained": nn.Linear(2, 3)})
    module.register_buffer("count", torch.tensor([1, 2]))
    module.register_buffer("passing", torch.zeros(1), persistent=False)
    return module


def test_what_is_trained_by_name(module):
    assert trainable(module) == {"trained.weight": module["trained"].weight, "trained.bias": module["trained"].bias}


def test_the_state_is_what_is_trained_and_the_persistent_buffers_where_they_are(module):
    state = trained_state(module)
    assert set(state) == {"trained.weight", "trained.bias", "count"}
    assert state["trained.weight"] is module["trained"].weight
    assert state["count"] is module.count


def test_a_parameter_thawed_later_is_part_of_it(module):
    module["frozen"].bias.requires_grad_(True)
    assert "frozen.bias" in trained_state(module)
    assert "frozen.weight" not in trained_state(module)


def test_a_copy_on_the_cpu_is_nobody_else_s(module):
    weight = module["trained"].weight
    copied = on_cpu(weight.T)
    assert not copied.requires_grad
    assert copied.is_contiguous()
    assert torch.equal(copied, weight.detach().T)
    with torch.no_grad():
        weight.zero_()
    assert copied.abs().sum() > 0


def test_names_must_be_the_same():
    known = {name: torch.zeros(1) for name in "abc"}
    check_names(dict(reversed(known.items())), known)
    with pytest.raises(ConfigError, match=r"missing \['b', 'c'\], unknown \['d'\]") as raised:
        check_names({"a": torch.zeros(1), "d": torch.zeros(1)}, known)
    assert "Use the configuration that they were saved with." in str(raised.value)
    assert raised.value.exit_code == 2


pytestmark = pytest.mark.usefixtures("clean_process")

INPUTS = torch.linspace(-1, 1, 12).reshape(4, 3)
LR = {"qwen": 0.1, "grid": 0.02, "refiner": 0.5}


def make_engines(**options) -> Engines:
    """An engine of one layer in each place: 3 inputs, 2 numbers that cross, 2 outputs; the policy reads the inputs."""
    accelerator, precision = Accelerator(cpu=True), Precision("no", torch.device("cpu"))

    def engine(name: str, inputs: int, outputs: int, schedule=lambda steps, _: 1 / (1 + steps)) -> PlainEngine:
        torch.manual_seed(len(name))
        module = nn.Linear(inputs, outputs)
        group = ParameterGroup(name=name, parameters=list(module.parameters()), lr=LR[name])
        chosen = {"schedule": schedule, "max_grad_norm": 0.5, "weight_decay": 0.1, "betas": (0.8, 0.95)} | options
        return PlainEngine(accelerator, module, [group], OptimizerSettings(**chosen), precision)

    return Engines(
        qwen=engine("qwen", 3, 2),
        grid=engine("grid", 2, 2),
        refiner=engine("refiner", 3, 1, lambda _steps, _: 1.0),
        precision=precision,
    )


def grid_loss(module: nn.Module, prompt: Tensor, factor: float = 1.0) -> Tensor:
    return factor * (module(prompt.tanh()) - 3.0).square().sum()


def refiner_loss(module: nn.Module, factor: float = 1.0) -> Tensor:
    return factor * (module(INPUTS) + 1.0).square().sum()


def backward(engines: Engines, factor: float = 1.0) -> dict[str, Tensor]:
    """All backward passes; Qwen's engine makes the inputs of the grid's, and meets it in a detached leaf."""
    prompt = engines.qwen(INPUTS)
    border = prompt.detach().requires_grad_()
    engines.grid.backward(grid_loss(engines.grid.module, border, factor))
    engines.qwen.backward(prompt, border.grad)
    engines.refiner.backward(refiner_loss(engines.refiner.module))
    return engines.gradient_norms()


def snapshot(engines: Engines) -> dict[str, Tensor]:
    """Bits of all weights, moments, learning rates."""
    state = {"rates": torch.tensor(list(engines.learning_rates().values()), dtype=torch.float64)}
    for name, engine in engines.by_name().items():
        values = {**engine.gather_weights(), **engine.gather_moments()}
        state |= {f"{name}.{key}": value for key, value in values.items()}
    return state


def assert_bit_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_the_split_backward_is_the_joint_one():
    engines = make_engines()
    joint = {name: copy.deepcopy(engine.module) for name, engine in engines.by_name().items()}
    norms = backward(engines)
    (grid_loss(joint["grid"], joint["qwen"](INPUTS)) + refiner_loss(joint["refiner"])).backward()
    assert list(norms) == ["qwen", "grid", "refiner"]
    for name, engine in engines.by_name().items():
        for key, parameter in joint[name].named_parameters():
            assert parameter.grad.abs().sum() > 0
            torch.testing.assert_close(engine.module.get_parameter(key).grad, parameter.grad, rtol=1e-6, atol=1e-6)
        squares = sum(parameter.grad.square().sum() for parameter in joint[name].parameters())
        torch.testing.assert_close(norms[name], squares.sqrt())


def test_each_engine_is_clipped_by_its_own_norm():
    engines, alone = make_engines(), make_engines()
    for each, factor in ((engines, 1e6), (alone, 0.0)):
        each.grid.backward(grid_loss(each.grid.module, torch.ones(1, 2)))
        each.qwen.backward(factor * each.qwen(INPUTS).sum())
        each.gradient_norms()
        each.step()
    assert_bit_equal(engines.grid.gather_weights(), alone.grid.gather_weights())


def test_all_step_or_none_does():
    engines = make_engines()
    before = snapshot(engines)
    backward(engines)
    engines.skip()
    assert_bit_equal(snapshot(engines), before)
    for engine in engines.by_name().values():
        assert all(parameter.grad is None for parameter in engine.module.parameters())
    backward(engines)
    engines.step()
    after = snapshot(engines)
    assert [name for name, value in before.items() if torch.equal(value, after[name])] == []
    assert engines.learning_rates() == pytest.approx({"qwen": 0.05, "grid": 0.01, "refiner": 0.5})


@pytest.mark.parametrize("engine", ["qwen", "grid", "refiner"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norms_tell_which_engine_is_not_finite_and_a_skip_leaves_every_bit(engine, value):
    engines = make_engines()
    backward(engines)
    engines.step()
    before = snapshot(engines)
    handle = engines.by_name()[engine].module.bias.register_hook(lambda gradient: gradient * value)
    norms = backward(engines)
    assert [name for name, norm in norms.items() if not norm.isfinite()] == [engine]
    engines.skip()
    handle.remove()
    assert_bit_equal(snapshot(engines), before)
    # Nothing of it is left in the next step.
    other = make_engines()
    for _ in range(2):
        backward(other)
        other.step()
    backward(engines)
    engines.step()
    assert_bit_equal(snapshot(engines), snapshot(other))


def test_a_loss_scale_changes_nothing_but_the_scale_of_the_losses(scale_losses):
    scaled, plain = make_engines(), make_engines()
    scale_losses(scaled.precision, 1024.0)
    for _ in range(3):
        norms = backward(plain)
        for name, norm in backward(scaled).items():
            torch.testing.assert_close(norm, norms[name])
        scaled.step()
        plain.step()
    expected = snapshot(plain)
    for name, value in snapshot(scaled).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    assert scaled.precision.loss_scale == 1024.0


def test_an_overflow_skips_all_engines_and_halves_the_scale_once(scale_losses):
    engines = make_engines()
    scale_losses(engines.precision, 2.0**20)
    backward(engines)
    engines.step()
    before = snapshot(engines)
    norms = backward(engines, factor=1e35)  # the loss is finite, its scaled gradient is not
    assert [name for name, norm in norms.items() if not norm.isfinite()] == ["qwen", "grid"]
    engines.skip()
    assert_bit_equal(snapshot(engines), before)
    assert engines.precision.loss_scale == 2.0**19
    backward(engines)
    engines.step()  # and goes on
    assert not torch.equal(snapshot(engines)["grid.weight"], before["grid.weight"])
    assert engines.precision.loss_scale == 2.0**19


@pytest.mark.parametrize("outcome", ["step", "skip"])
def test_where_qwen_has_read_nothing_it_stays_as_it_is_and_its_schedule_goes_on(scale_losses, monkeypatch, outcome):
    engines = make_engines()  # as with prompts that are all kept
    scale_losses(engines.precision, 1024.0)
    backward(engines)
    engines.step()
    before = snapshot(engines)
    for asked in ("gradient_norms", "step", "skip"):  # Nothing is exchanged.
        monkeypatch.setattr(engines.qwen, asked, None)
    engines.grid.backward(grid_loss(engines.grid.module, INPUTS[:, :2]))
    norms = engines.gradient_norms(qwen_idle=True)
    assert list(norms) == ["qwen", "grid", "refiner"]
    assert norms["qwen"].item() == 0.0
    getattr(engines, outcome)(qwen_idle=True)
    after = snapshot(engines)
    same = {name for name in before if name.startswith("qwen.") and torch.equal(after[name], before[name])}
    assert same == {name for name in before if name.startswith("qwen.")}
    assert torch.equal(after["grid.weight"], before["grid.weight"]) is (outcome == "skip")
    assert engines.qwen.schedule.steps_done == engines.grid.schedule.steps_done == (2 if outcome == "step" else 1)


def test_names_and_rates_are_those_of_all_engines():
    engines = make_engines()
    assert list(engines.by_name()) == ["qwen", "grid", "refiner"]
    assert engines.learning_rates() == LR
    with engines.autocast():
        assert engines.grid.module(torch.ones(1, 2)).dtype == torch.float32
