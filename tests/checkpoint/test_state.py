"""What is saved of a session is all of it, bit for bit; its frozen base is named by what its weights are."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

from arcdist.checkpoint.state import (
    base_identity,
    config_of,
    gather_moments,
    gather_weights,
    load_weights,
    read_base,
    restore,
    take_snapshot,
)
from arcdist.checkpoint.store import load_checkpoint, save_checkpoint
from arcdist.config import QwenConfig
from arcdist.errors import ConfigError, DataError, PlatformError
from arcdist.evaluation import score
from arcdist.models.qwen_source import TINY, load_body
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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_are_named_after_their_parameters(build_tiny, optimizer):
    session = build_tiny(f"--optim.matrix_optimizer={optimizer}")
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
    matrices = {id(matrix) for matrix in session.models.agent.matrices() if optimizer == "muon"}
    by_muon = {f"grid.agent.{name}" for name, p in session.models.agent.named_parameters() if id(p) in matrices}
    assert set(moments) == {
        *(f"{name}@{moment}" for name in trained - buffers - by_muon for moment in ("step", "exp_avg", "exp_avg_sq")),
        *(f"{name}@momentum_buffer" for name in by_muon),
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


def test_a_process_that_does_not_write_copies_nothing(build_tiny, monkeypatch):
    session = steps(build_tiny("--qwen.every=3"))
    copied = []
    monkeypatch.setattr(type(session), "is_main", property(lambda _: False))
    for module in ("arcdist.engine.plain", "arcdist.checkpoint.state"):
        monkeypatch.setattr(f"{module}.on_cpu", copied.append)
    monkeypatch.setattr(type(session.models.prompts), "state", lambda _: pytest.fail("prompts were copied"))
    assert take_snapshot(session, {}) is None
    assert copied == []


WEIGHTS = {"model-1.safetensors": b"first", "model-2.safetensors": b"second" * 1000}


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(folder=None, **changes):
    made = Qwen2Config(hidden_size=16, num_hidden_layers=1, **changes)
    made.name_or_path = str(folder or "")
    return made


def model_folder(folder: Path, weights) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name, content in weights.items():
        (folder / name).write_bytes(content)
    return folder


def identity(folder: Path, seed=0) -> str:
    named = base_identity(config(folder), "some/name", random=False, seed=seed)
    assert named["model"] == "some/name"
    return named["sha256"]


def test_weights_are_named_by_their_bytes_not_by_their_place_or_the_seed(tmp_path):
    first = model_folder(tmp_path / "a", WEIGHTS)
    second = model_folder(tmp_path / "b", dict(reversed(WEIGHTS.items())))
    (second / "README.md").write_text("no weights")
    assert identity(first) == identity(second, seed=1)
    # Computed by hand: names and checksums, in the order of the names.
    lines = "".join(f"{name}\0{hashlib.sha256(WEIGHTS[name]).hexdigest()}\0" for name in sorted(WEIGHTS))
    assert identity(first) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {**WEIGHTS, "model-1.safetensors": b"First"},
        {**WEIGHTS, "model-2.safetensors": b"second" * 999},
        {**WEIGHTS, "model-3.safetensors": b""},
        {"model-1.safetensors": b"first"},
        {"model-2.safetensors": b"first", "model-1.safetensors": b"second" * 1000},
    ],
)
def test_other_bytes_are_another_base(tmp_path, other):
    assert identity(model_folder(tmp_path / "a", WEIGHTS)) != identity(model_folder(tmp_path / "b", other))


def cached(cache: Path, weights, *, snapshots: str = "snapshots", blobs: str = "blobs") -> Path:
    """A model in the Hub's cache; its blobs are empty, so that whoever reads them computes something else."""
    snapshot = cache / snapshots / COMMIT
    for folder in (snapshot, cache / blobs):
        folder.mkdir(parents=True)
    for name, content in weights.items():
        blob = cache / blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(b"")
        (snapshot / name).symlink_to(Path("..", "..", blobs, blob.name))
    return snapshot


def test_a_name_in_the_hub_s_cache_is_the_checksum_and_is_not_computed_again(tmp_path):
    plain = model_folder(tmp_path / "plain", WEIGHTS)
    snapshot = cached(tmp_path / "hub" / "models--Qwen--Qwen2.5-1.5B", WEIGHTS)
    assert identity(snapshot) == identity(plain)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "hub")
    assert identity(tmp_path / "elsewhere" / snapshot.relative_to(tmp_path / "hub")) == identity(plain)


@pytest.mark.parametrize(
    ("cache", "layout"),
    [
        ("Qwen2.5-1.5B", {}),
        ("models--Qwen--Qwen2.5-1.5B", {"snapshots": "versions"}),
        ("models--Qwen--Qwen2.5-1.5B", {"blobs": "files"}),
    ],
)
def test_in_no_other_layout_is_a_name_taken_for_a_checksum(tmp_path, cache: str, layout: dict[str, str]):
    empty = model_folder(tmp_path / "empty", dict.fromkeys(WEIGHTS, b""))
    assert identity(cached(tmp_path / cache, WEIGHTS, **layout)) == identity(empty)


def test_nor_is_that_of_a_blob_which_is_another_model_s(tmp_path):
    snapshot = cached(tmp_path / "models--a--b", {"model.safetensors": b"first"})
    other = cached(tmp_path / "models--c--d", {"model.safetensors": b"second"})
    link = snapshot / "model.safetensors"
    link.unlink()
    link.symlink_to(other.parents[1] / "blobs" / hashlib.sha256(b"second").hexdigest())
    assert identity(snapshot) == identity(model_folder(tmp_path / "empty", {"model.safetensors": b""}))


@pytest.mark.parametrize("place", ["empty", "absent", None])
def test_pretrained_weights_that_are_not_there_are_not_named_by_their_shape(tmp_path, place):
    (tmp_path / "empty").mkdir()
    source = tmp_path / place if place else None
    with pytest.raises(
        PlatformError, match=rf"no weights as safetensors in {source or 'any folder'}, where they were "
    ):
        base_identity(config(source), "some/name", random=False, seed=0)


def test_pretrained_weights_that_cannot_be_read_are_told(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(PlatformError, match=r"a\.safetensors cannot be read \(Is a directory\)"):
        base_identity(config(tmp_path), "some/name", random=False, seed=0)


def test_a_link_to_a_file_of_any_other_name_is_read(tmp_path):
    plain = model_folder(tmp_path / "plain", WEIGHTS)
    linked = model_folder(tmp_path / "linked", {})
    for name, content in WEIGHTS.items():
        (tmp_path / f"my {name}").write_bytes(content)
        (linked / name).symlink_to(tmp_path / f"my {name}")
    assert identity(linked) == identity(plain)
    # Nor is a file that only has such a name, without a link to it, taken at its word.
    name = "0" * 64
    odd = model_folder(tmp_path / "odd", {f"{name}.safetensors": b"first"})
    assert identity(odd) != identity(model_folder(tmp_path / "even", {f"{name}.safetensors": b"second"}))


def random_identity(seed=0, folder=None, **changes):
    return base_identity(config(folder, **changes), "embedded:tiny", random=True, seed=seed)["sha256"]


def test_random_weights_are_named_by_their_shape_and_their_seed(tmp_path):
    assert random_identity() == random_identity()
    others = [
        random_identity(seed=1),
        random_identity(intermediate_size=24),
        random_identity(vocab_size=99),
        random_identity(rms_norm_eps=1e-5),
        random_identity(tie_word_embeddings=True),
    ]
    assert len({random_identity(), *others}) == 6
    # Weights that lie beside the configuration are not what such a model is made of.
    assert random_identity(folder=model_folder(tmp_path / "a", WEIGHTS)) == random_identity()


def test_a_relative_folder_is_named_so_that_it_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape, _ = load_body(TINY, "random", torch.float32)
    model = "models/mine"
    Qwen2ForCausalLM(shape.config).save_pretrained(model)
    loaded = Qwen2ForCausalLM.from_pretrained(Path(model), config=AutoConfig.from_pretrained(Path(model))).base_model
    drawn, _ = load_body(model, "random", torch.float32)
    for body, random in ((loaded, False), (drawn, True)):
        named = base_identity(body.config, model, random=random, seed=0)
        kind = "random" if random else "folder"
        assert named == named | {"model": model, "kind": kind, "folder": str(tmp_path / model)}
        base = read_base(named, QwenConfig(model=model))
        assert (base.kind, base.name, base.sha256) == (kind, str(tmp_path / model), named["sha256"])


def test_a_name_whose_weights_lie_elsewhere_is_the_hub_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "name").mkdir(parents=True)  # which was not there when the weights were loaded
    named = base_identity(config(model_folder(tmp_path / "snapshot", WEIGHTS)), "some/name", random=False, seed=0)
    assert named == {"model": "some/name", "kind": "hub", "sha256": identity(tmp_path / "snapshot")}
    base = read_base(named, QwenConfig(model="some/name"))
    assert (base.kind, base.name) == ("hub", "some/name")


@pytest.mark.parametrize(
    ("model", "init", "kind", "name"),
    [
        (TINY, "pretrained", "random", TINY),
        ("Qwen/Qwen2.5-0.5B", "random", "random", "Qwen/Qwen2.5-0.5B"),
        ("Qwen/Qwen2.5-1.5B", "pretrained", "unknown", "Qwen/Qwen2.5-1.5B"),
        ("models/mine", "pretrained", "unknown", "models/mine"),
        ("./models/mine", "pretrained", "folder", "./models/mine"),
        ("models/mine/", "pretrained", "folder", "models/mine/"),
        ("/models/mine", "pretrained", "folder", "/models/mine"),
        ("~/mine", "pretrained", "folder", "/home/me/mine"),
    ],
)
def test_what_an_older_checkpoint_does_not_say_is_not_guessed(
    monkeypatch,
    model: str,
    init,
    kind: str,
    name: str,
):
    monkeypatch.setenv("HOME", "/home/me")
    base = read_base({"model": model, "sha256": "ab"}, QwenConfig(model=model, init=init))
    assert (base.kind, base.name, base.sha256) == (kind, name, "ab")


def test_a_state_that_names_no_base_is_refused():
    with pytest.raises(DataError, match=r"does not say what base it belongs to: it lacks model, sha256\.$"):
        read_base({}, QwenConfig())


def test_a_key_that_is_younger_than_the_checkpoint_has_its_default(build_tiny):
    state = take_snapshot(build_tiny(), {}).state
    older = {name: value for name, value in state["config"].items() if name != "output.keep_last"}
    assert config_of({"config": older | {"train.of_old": 1}}) == config_of(state)
