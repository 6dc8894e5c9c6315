import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.training.optim import build_engines, warmup_cosine


def test_warmup_and_cosine_by_hand():
    share = warmup_cosine(warmup_steps=4, total_steps=100, final_share=0.0)
    assert [share(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # 96 steps of cosine after 4 of warm-up: a quarter, a half, three quarters, the end, beyond it.
    assert share(28) == pytest.approx(0.5 + math.sqrt(2) / 4)
    assert share(52) == pytest.approx(0.5)
    assert share(76) == pytest.approx(0.5 - math.sqrt(2) / 4)
    assert share(100) == pytest.approx(0.0)
    assert share(1000) == pytest.approx(0.0)


def test_cosine_ends_at_its_final_share():
    share = warmup_cosine(warmup_steps=4, total_steps=100, final_share=0.2)
    assert share(3) == 1.0
    assert share(52) == pytest.approx(0.6)
    assert share(100) == pytest.approx(0.2)


def test_warm_up_takes_at_most_a_tenth_of_the_run():
    share = warmup_cosine(warmup_steps=100, total_steps=50, final_share=0.0)
    assert [share(step) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


@pytest.mark.parametrize("total", [1, 2, 9])
def test_the_first_step_of_a_short_run_has_the_full_rate(total):
    assert warmup_cosine(warmup_steps=100, total_steps=total, final_share=0.0)(0) == 1.0


@given(warmup=st.integers(0, 50), total=st.integers(1, 400), final=st.floats(0.0, 1.0), step=st.integers(0, 500))
def test_share_lies_within_its_bounds_and_falls_after_the_warm_up(warmup, total, final, step):
    share = warmup_cosine(warmup, total, final)
    assert 0.0 < share(step) <= 1.0 or share(step) == pytest.approx(final)
    if step >= total // 10:
        assert share(step) >= final - 1e-12
        assert share(step + 1) <= share(step)


def test_groups_and_their_rates(build_tiny):
    session = build_tiny(
        *("--agent_lr=1e-3", "--qwen_lr=7e-4", "--optim.weight_decay=0.01", "--optim.beta2=0.95", "--epochs=50"),
        *("--optim.solver_lr_scale=2", "--optim.efe_lr_scale=0.5", "--optim.task_vector_lr_scale=3"),
    )
    # 100 steps, so 10 of warm-up: the first takes a tenth of each peak.
    expected = {
        **dict.fromkeys(("lora", "prompt_projection", "control_mlp"), 7e-5),
        "agent": 1e-4,
        "solver": 2e-4,
        "efe": 5e-5,
        "task_vectors": 3e-4,
        "refiner": 5e-5,  # without a schedule
    }
    assert session.engines.learning_rates() == pytest.approx(expected)
    for engine in (session.engines.qwen, session.engines.grid):
        for group in engine.optimizer.param_groups:
            assert group["weight_decay"] == 0.01
            assert group["betas"] == (0.9, 0.95)
    (group,) = session.engines.refiner.optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.0, (0.9, 0.999))


def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one_is(build_tiny):
    session = build_tiny()
    models, engines = session.models, session.engines
    optimized = [
        parameter for engine in engines.by_name().values() for group in engine.groups for parameter in group.parameters
    ]
    modules = (models.qwen, models.agent, models.solver, models.efe, models.refiner)
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    assert len(optimized) == len(trainable)
    assert {id(p) for p in optimized} == {id(p) for p in trainable}
    averaged = {id(p) for p in models.averaged_agent.module.parameters()}
    assert averaged.isdisjoint(id(p) for p in optimized)


@pytest.mark.parametrize(
    ("flags", "absent"),
    [
        (["--agent.kind=conv"], "task_vectors"),
        (["--agent.task_vectors=false"], "task_vectors"),
        (["--qwen.control_weight=0"], "control_mlp"),
    ],
)
def test_a_group_without_parameters_is_left_out(build_tiny, flags, absent):
    engines = build_tiny(*flags).engines
    assert absent not in engines.learning_rates()
    assert len(engines.learning_rates()) == 7


def test_schedules_of_qwen_and_grid_move_together_and_the_refiner_has_none(build_tiny):
    session = build_tiny("--epochs=10")
    engines = build_engines(session.accelerator, session.models, session.config, total_steps=20)
    first = engines.learning_rates()
    assert first["lora"] == pytest.approx(session.config.optim.qwen_lr / 2)
    engines.gradient_norms()
    engines.step()
    constant = {"refiner": session.config.refiner.rl_lr}
    assert engines.learning_rates() == pytest.approx({name: 2 * rate for name, rate in first.items()} | constant)
