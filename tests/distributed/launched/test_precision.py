"""bfloat16 under every launcher file, as the recipes for GPUs have it."""

import math

import pytest

pytestmark = pytest.mark.slow

SEVERAL = ["cpu_2proc", "zero1", "zero2", "zero2_offload", "zero3"]
BF16 = ("--train.precision=bf16", "--qwen.dtype=bfloat16", "--qwen.gradient_checkpointing=true")
# A refiner that changes no answer: one cell that rounding turns would make a reward, and a reward another gradient.
CALM = ("--refiner.rl_delta_scale=0.01", "--max_batches=3")


@pytest.fixture
def single(launched):
    return launched("cpu", 1, *BF16, *CALM)


@pytest.mark.parametrize("config", SEVERAL)
def test_bf16_on_several_processes_is_that_of_one(launched, single, config):
    several = launched(config, 2, *BF16, *CALM)
    assert {*several.codes, *single.codes} == {0}, several.err
    for record, other in zip(several.steps(), single.steps(), strict=True):
        assert all(math.isfinite(value) for name, value in record.items() if name != "flags")
        for name in ("loss", "efe/total", "size_loss", "solver_loss", "grad_norm/agent", "grad_norm/qwen"):
            assert record[name] == pytest.approx(other[name], rel=0.03), (name, record["step"])


def test_bf16_is_near_float32_and_is_not_float32(launched, single):
    whole = launched("cpu", 1, *CALM)
    losses = [(record["loss"], other["loss"]) for record, other in zip(single.steps(), whole.steps(), strict=True)]
    assert all(loss == pytest.approx(other, rel=0.02) for loss, other in losses)
    assert any(loss != pytest.approx(other, rel=1e-4) for loss, other in losses)
