import json

import pytest
import torch

from arcdist.checkpoint.state import gather_moments, gather_weights, load_weights, restore, take_snapshot
from arcdist.checkpoint.store import load_checkpoint, save_checkpoint
from arcdist.errors import ConfigError
from arcdist.evaluation import score
from arcdist.training.metrics import predictor_of
from arcdist.training.step import StepSettings, train_step


def steps(session, count=2):
    """Train a little, remembering every query."""
    for number, batch in enumerate(session.training.loader(0, session.device, count)):
        settings = StepSettings(config=session.config, number=number, size_weight=1.0, memory_threshold=-1.0)
        noise = session.refinement_noise(batch, 0)
        train_step(batch, session.models, session.engines, noise, settings)
    return session


def scores(session):
    batches = session.validation.loader(0, session.device)
    return score(predictor_of(session), ((batch.queries[0], True) for batch in batches))


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("flags", [(), ("--agent.kind=conv", "--agent.ema_decay=0", "--qwen.fuse=concat-linear")])
def test_weights_go_through_a_checkpoint_into_another_run_bit_for_bit(tmp_path, build_tiny, flags):
    trained = steps(build_tiny(*flags))
    save_checkpoint(tmp_path / "a", take_snapshot(trained, {}))
    snapshot = load_checkpoint(tmp_path / "a")
    assert_equal(snapshot.moments, gather_moments(trained))

    other = build_tiny(*flags, "--seed=1")
    assert scores(other) != scores(trained)
    # The frozen base is the seed's, and no part of a checkpoint: it comes from where the model comes from.
    other.models.qwen.body.load_state_dict(trained.models.qwen.body.state_dict())
    restore(other, snapshot)
    assert_equal(gather_moments(other), gather_moments(trained))
    assert_equal(gather_weights(other), gather_weights(trained))
    assert len(other.models.solver.memory) == 8
    assert scores(other) == scores(trained)


def test_what_is_gathered_is_all_that_is_trained_and_nothing_frozen(build_tiny):
    session = build_tiny()
    models = session.models
    weights = gather_weights(session)
    qwen = {f"qwen.{name}" for name, p in models.qwen.named_parameters() if p.requires_grad}
    assert {name for name in weights if name.startswith("qwen.")} == qwen
    assert all("lora_" in name for name in qwen if name.startswith("qwen.body."))
    assert any(not p.requires_grad for p in models.qwen.parameters())
    for part, module in (("agent", models.agent), ("solver", models.solver), ("efe", models.efe)):
        expected = {f"grid.{part}.{name}" for name in module.state_dict()}
        assert {name for name in weights if name.startswith(f"grid.{part}.")} == expected
    assert {name for name in weights if name.startswith("refiner.")} == {
        f"refiner.{name}" for name in models.refiner.state_dict()
    }
    assert {name for name in weights if name.startswith("averaged_agent.")} == {
        f"averaged_agent.{name}" for name in models.agent.state_dict()
    }
    assert {name.split(".")[0] for name in weights} == {"qwen", "grid", "refiner", "averaged_agent"}


def test_the_average_is_left_out_where_none_is_kept(build_tiny):
    assert not any(name.startswith("averaged_agent.") for name in gather_weights(build_tiny("--agent.ema_decay=0")))


def test_gathered_tensors_are_copies(build_tiny):
    session = build_tiny()
    before = gather_weights(session)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    steps(session)
    assert_equal(before, kept)


def test_moments_are_named_after_their_parameters(build_tiny):
    session = build_tiny()
    assert gather_moments(session) == {}
    steps(session)
    trained = {
        name
        for name, tensor in gather_weights(session).items()
        if tensor.is_floating_point() and not name.startswith("averaged_agent.")
    }
    buffers = {f"grid.efe.{name}" for name, _ in session.models.efe.named_buffers()}
    buffers |= {f"grid.solver.{name}" for name, _ in session.models.solver.named_buffers()}
    moments = gather_moments(session)
    assert set(moments) == {
        f"{name}@{moment}" for name in trained - buffers for moment in ("step", "exp_avg", "exp_avg_sq")
    }
    assert {moments[name].item() for name in moments if name.endswith("@step")} == {2.0}


@pytest.mark.parametrize("part", ["qwen", "grid", "refiner", "averaged_agent"])
def test_weights_of_another_configuration_are_refused(build_tiny, part):
    session = build_tiny()
    weights = gather_weights(session)
    name = next(name for name, tensor in weights.items() if name.startswith(f"{part}.") and tensor.ndim == 2)
    with pytest.raises(ConfigError, match="do not fit the configured model") as raised:
        load_weights(session, {key: tensor for key, tensor in weights.items() if key != name})
    assert name.removeprefix(f"{part}.") in str(raised.value)
    with pytest.raises(ConfigError, match="do not fit"):
        load_weights(session, weights | {name: torch.zeros(3, 3)})
    with pytest.raises(ConfigError, match="do not fit"):
        load_weights(session, weights | {f"{part}.nonsense": torch.zeros(3)})


def test_state_is_plain_numbers_and_says_what_it_is_the_state_of(build_tiny):
    session = steps(build_tiny("--seed=5", "--qwen.every=3"))
    state = take_snapshot(session, {"step": 12}).state
    state = json.loads(json.dumps(state))
    assert state["step"] == 12
    assert state["steps_of_schedules"] == {"qwen": 2, "grid": 2, "refiner": 2}
    assert state["loss_scale"] == {"scale": 1.0, "good_steps": 0}
    assert state["averaged_agent"] == {"updates": 2}
    assert state["random_streams"]["seed"] == 5
    assert state["config"]["train.seed"] == 5
    batches = enumerate(session.training.loader(0, session.device, 2))
    assert state["prompts"] == {query: number for number, batch in batches for query in batch.ids}
    assert state["processes"] == 1
    assert state["versions"]["torch"] == torch.__version__
    assert set(state["versions"]) >= {"arcdist", "torch", "accelerate", "transformers", "peft"}
