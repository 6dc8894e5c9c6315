"""Several engines: two backward passes that meet in a tensor, and all of them step or none does."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arcdist.engine import Engines, OptimizerSettings, ParameterGroup, PlainEngine, Precision

pytestmark = pytest.mark.usefixtures("clean_process")

INPUTS = torch.linspace(-1, 1, 12).reshape(4, 3)
LR = {"qwen": 0.1, "grid": 0.02, "refiner": 0.5}


def make_engines(**options) -> Engines:
    """An engine of one layer in each place: 3 inputs, 2 numbers that cross, 2 outputs; the policy reads the inputs."""
    accelerator, precision = Accelerator(cpu=True), Precision("no", torch.device("cpu"))

    def engine(name: str, inputs: int, outputs: int, schedule=lambda step: 1 / (1 + step)) -> PlainEngine:
        torch.manual_seed(len(name))
        module = nn.Linear(inputs, outputs)
        group = ParameterGroup(name=name, parameters=list(module.parameters()), lr=LR[name])
        chosen = {"schedule": schedule, "max_grad_norm": 0.5, "weight_decay": 0.1, "betas": (0.8, 0.95)} | options
        return PlainEngine(accelerator, module, [group], OptimizerSettings(**chosen), precision)

    return Engines(
        qwen=engine("qwen", 3, 2),
        grid=engine("grid", 2, 2),
        refiner=engine("refiner", 3, 1, lambda _step: 1.0),
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
def test_a_loss_scale_allows_a_step_in_which_qwen_read_nothing(scale_losses, outcome):
    engines = make_engines(weight_decay=0.0)  # as with prompts that are all cached
    scale_losses(engines.precision, 1024.0)
    before = snapshot(engines)
    engines.grid.backward(grid_loss(engines.grid.module, INPUTS[:, :2]))
    assert engines.gradient_norms()["qwen"].item() == 0.0
    getattr(engines, outcome)()
    after = snapshot(engines)
    assert torch.equal(after["qwen.weight"], before["qwen.weight"])
    assert torch.equal(after["grid.weight"], before["grid.weight"]) is (outcome == "skip")


def test_names_and_rates_are_those_of_all_engines():
    engines = make_engines()
    assert list(engines.by_name()) == ["qwen", "grid", "refiner"]
    assert engines.learning_rates() == LR
    with engines.autocast():
        assert engines.grid.module(torch.ones(1, 2)).dtype == torch.float32
