import pytest
import torch

from arcdist.engine import Precision

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
