"""Where the body comes from: trained weights are the ones on disk, and whatever cannot be had is told plainly."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from shared.families import FAMILIES
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from arcdist.errors import ArcdistError, ConfigError, PlatformError
from arcdist.models import qwen_source
from arcdist.models.qwen_source import TINY, UNSHARDED, Sharding, embedded_config, load_body, random_body


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-4B", 4_022_468_096),
    ],
)
def test_parameters_without_lm_head(name: str, parameters: int) -> None:
    with torch.device("meta"):
        body = random_body(embedded_config(name), torch.bfloat16)
    assert sum(parameter.numel() for parameter in body.parameters()) == parameters
    assert {parameter.dtype for parameter in body.parameters()} == {torch.bfloat16}
    assert not any("lm_head" in name for name, _ in body.named_parameters())


def test_tiny_has_a_vocabulary_of_grids() -> None:
    body = random_body(embedded_config(TINY), torch.float32)
    assert body.get_input_embeddings().weight.shape == (14, 32)
    assert body.config._attn_implementation == "sdpa"


def small_config(layers=2):
    """A Qwen2 wide enough for statistics."""
    return Qwen2Config(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.05,
    )


@pytest.fixture(scope="module")
def config():
    return small_config()


def weights(body):
    return {name: parameter.detach().clone() for name, parameter in body.named_parameters()}


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(config):
    torch.manual_seed(3)
    first = weights(random_body(config, torch.float32, seed=5))
    torch.rand(7)
    second = weights(random_body(config, torch.float32, seed=5))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_another_seed_gives_other_matrices(config):
    first, second = (weights(random_body(config, torch.float32, seed=seed)) for seed in (0, 1))
    matrices = [name for name, value in first.items() if value.ndim == 2]
    assert len(matrices) == 1 + 2 * 7
    assert [name for name in matrices if torch.equal(first[name], second[name])] == []


def test_matrices_are_normal_scales_1_and_biases_0(config):
    body = random_body(config, torch.float32)
    kinds = {name: module for name, module in body.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    for name, value in weights(body).items():
        layer, _, field = name.rpartition(".")
        if field == "bias":
            assert not value.any(), name
        elif layer in kinds:
            assert abs(value.mean()) < 0.05 * 5 / value.numel() ** 0.5, name
            assert value.std().item() == pytest.approx(0.05, rel=5 / value.numel() ** 0.5), name
        else:
            assert (value == 1).all(), name
    assert any(name.endswith("bias") for name in weights(body))
    assert any(value.ndim == 1 and (value == 1).all() for value in weights(body).values())


def test_layers_of_one_shape_have_weights_of_their_own(config):
    first, second = random_body(config, torch.float32).layers
    assert not torch.equal(first.mlp.up_proj.weight, second.mlp.up_proj.weight)
    assert not torch.equal(first.mlp.up_proj.weight, first.mlp.gate_proj.weight)


def test_a_model_with_fewer_layers_is_the_beginning_of_a_larger_one(config):
    larger = weights(random_body(config, torch.float32))
    smaller = weights(random_body(small_config(layers=1), torch.float32))
    assert smaller.keys() < larger.keys()
    assert all(torch.equal(value, larger[name]) for name, value in smaller.items())


def test_the_weights_have_the_precision_that_is_asked_for(config):
    body = random_body(config, torch.bfloat16)
    assert {parameter.dtype for parameter in body.parameters()} == {torch.bfloat16}


def test_it_is_built_in_shards_of_which_one_parameter_at_a_time_is_whole(config):
    open_now, seen, building = [], [], []

    class Noting:
        @contextmanager
        def building(self, dtype):
            building.append(dtype)
            yield

        @contextmanager
        def whole(self, parameter):
            open_now.append(parameter)
            seen.append(parameter)
            yield
            assert open_now.pop() is parameter
            assert not open_now

    noting = Noting()
    assert isinstance(noting, Sharding)
    assert isinstance(UNSHARDED, Sharding)
    body = random_body(config, torch.float32, seed=5, sharding=noting)
    assert building == [torch.float32]
    assert [id(parameter) for parameter in seen] == [id(parameter) for parameter in body.parameters()]
    plain = weights(random_body(config, torch.float32, seed=5))
    assert all(torch.equal(value, plain[name]) for name, value in weights(body).items())


TOKENS = torch.tensor([[11, 3, 10, 12]])


def save_tokenizer(folder: Path, *words: str) -> None:
    """A byte-level tokenizer, as Qwen's, that knows these words and the symbols of a grid."""
    pieces = [*words, *"0123456789", "Ċ", "I", "O", "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>").save_pretrained(folder)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A whole small model with its tokenizer, as a download leaves it."""
    folder = tmp_path / "model"
    Qwen2ForCausalLM(embedded_config(TINY)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_folder_gives_its_trained_weights(model_folder: Path) -> None:
    body, tokenizer = load_body(str(model_folder), "pretrained", torch.float32)
    causal_lm = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        expected = causal_lm(TOKENS, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(body(TOKENS).last_hidden_state, expected)
    assert not any("lm_head" in name for name, _ in body.named_parameters())
    assert tokenizer.symbol_ids.tolist() == list(range(13))


def test_folder_is_loaded_in_the_precision_asked_for(model_folder: Path) -> None:
    body, _ = load_body(str(model_folder), "pretrained", torch.bfloat16)
    assert {parameter.dtype for parameter in body.parameters()} == {torch.bfloat16}


def test_loading_is_quiet(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_body(str(model_folder), "pretrained", torch.float32)
    assert capfd.readouterr() == ("", "")


def test_random_weights_of_a_folder_need_no_weights(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (model_folder / "model.safetensors").unlink()
    caplog.set_level("INFO")
    _, own = load_body(str(model_folder), "random", torch.float32)
    assert "untrained" in caplog.text
    assert own.vocab_size == 14
    (model_folder / "tokenizer.json").unlink()
    body, tokenizer = load_body(str(model_folder), "random", torch.float32)
    assert f"arcdist's own tokenizer ({model_folder} has none)" in caplog.text
    assert tokenizer.decode(TOKENS[0].numpy()) == "I3\nO"
    assert body.config.hidden_size == 32


def test_tiny_says_that_it_is_untrained(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load_body(TINY, "pretrained", torch.float32)
    assert caplog.messages == [
        "embedded:tiny has untrained, random weights: it knows no language, and reads the tokens of "
        "arcdist's own tokenizer (qwen.model is embedded:tiny)."
    ]


@pytest.mark.parametrize(
    ("model", "init", "message"),
    [
        ("embedded:big", "pretrained", "choose embedded:tiny, a folder"),
        ("Qwen/Qwen9", "random", "has no configuration in the package"),
        ("/no/such/folder", "pretrained", "neither a folder that exists nor a name of the Hub"),
    ],
)
def test_name_of_nothing(model: str, init: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_body(model, init, torch.float32)


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def leave_gguf(folder: Path) -> None:
    remove_config(folder)
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


def leave_an_adapter(folder: Path) -> None:
    remove_config(folder)
    add_an_adapter(folder)


def add_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')


def change_config(**values: object) -> Callable[[Path], None]:
    """Set keys of config.json."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def empty_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def leave_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    Qwen2ForCausalLM(embedded_config(TINY)).save_pretrained(folder, max_shard_size="20KB")


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def empty_the_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def round_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({name: (100 * value).to(torch.int8) for name, value in load_file(file).items()}, file)


def widen(folder: Path) -> None:
    save_config(folder, intermediate_size=48)


def lengthen(folder: Path) -> None:
    save_config(folder, num_hidden_layers=2, layer_types=["full_attention"] * 2)


def save_config(folder: Path, **changes: object) -> None:
    Qwen2Config(**embedded_config(TINY).to_dict() | changes).save_pretrained(folder)


def extend_tokenizer(folder: Path) -> None:
    save_tokenizer(folder, "a", "b")


SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def replace_by(kind: type[PreTrainedModel], config: PretrainedConfig) -> Callable[[Path], None]:
    """Put another model in its place."""

    def replace(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        kind(config).save_pretrained(folder)

    return replace


TAKE_THE_OTHER = "which is not supported: take the unquantised model."
NO_CAUSAL = "is no causal language model: choose one that is"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove_config, ConfigError, "has no config.json, so it is not a folder of a model."),
        (leave_gguf, ConfigError, "has no config.json, but GGUF (model-q4.gguf), which is not read"),
        (leave_an_adapter, ConfigError, "holds an adapter (adapter_config.json), which is not read"),
        (add_an_adapter, ConfigError, "holds an adapter (adapter_config.json), which is not read"),
        (break_config, ConfigError, "OSError: It looks like the config file at"),
        (change_config(model_type="none-such"), ConfigError, "none-such"),
        (
            change_config(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
            ConfigError,
            "no code of a model's own folder is run. ValueError: The repository",
        ),
        (change_config(hidden_size="wide"), ConfigError, "Field 'hidden_size' expected int, got str (value: 'wide')"),
        (change_config(dtype="float12"), ConfigError, "AttributeError: module 'torch' has no attribute 'float12'"),
        (change_config(num_attention_heads=0), ConfigError, "no model can be built from config.json"),
        (change_config(hidden_act="none"), ConfigError, "KeyError: 'none'"),
        *(
            (change_config(quantization_config={"quant_method": method}), ConfigError, f"({method}), {TAKE_THE_OTHER}")
            for method in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "not-yet-known")
        ),
        (
            change_config(quantization_config={"load_in_8bit": True}),
            ConfigError,
            f"is quantised (quantization_config in config.json), {TAKE_THE_OTHER}",
        ),
        (round_weights, ConfigError, f"is quantised (model.safetensors holds weights as I8), {TAKE_THE_OTHER}"),
        (remove_tokenizer, ConfigError, "has no tokenizer"),
        (empty_tokenizer, ConfigError, "cannot be read: copy the model's there again. "),
        (leave_a_pickle, PlatformError, "no weights as safetensors, the only format that is read"),
        (leave_a_pickle, PlatformError, "(it has pytorch_model.bin). Download or convert them"),
        (rename_weights, PlatformError, "(it has weights.safetensors). Download or convert them"),
        (break_weights, PlatformError, "model.safetensors is broken: download the model again"),
        (cut_weights, PlatformError, "model.safetensors is broken: download the model again"),
        (lose_a_shard, PlatformError, "lacks 1 of 3 files of the weights (model-00002-of-00003.safetensors): download"),
        (empty_the_index, PlatformError, "cannot be read (KeyError: 'weight_map'): download the model again"),
        (widen, PlatformError, "lack or misshape 3 parameters"),
        (lengthen, PlatformError, "lack or misshape 12 parameters"),
        (extend_tokenizer, ConfigError, "knows 16 tokens, but the model embeds only 14"),
        (
            replace_by(BertLMHeadModel, BertConfig(vocab_size=14, **SMALL)),
            ConfigError,
            f"(model type bert) {NO_CAUSAL}",
        ),
        (
            replace_by(ViTModel, ViTConfig(image_size=8, patch_size=4, **SMALL)),
            ConfigError,
            f"(model type vit) {NO_CAUSAL}",
        ),
    ],
)
def test_folder_that_cannot_serve(
    model_folder: Path, damage: Callable[[Path], None], error: type[ArcdistError], message: str
) -> None:
    damage(model_folder)
    with pytest.raises(error, match=re.escape(message)) as raised:
        load_body(str(model_folder), "pretrained", torch.float32)
    assert str(model_folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_in_several_files(model_folder: Path) -> None:
    shard(model_folder)
    assert len(list(model_folder.glob("model-*.safetensors"))) == 3
    body, _ = load_body(str(model_folder), "pretrained", torch.float32)
    causal_lm = AutoModelForCausalLM.from_pretrained(model_folder)
    assert torch.equal(body(TOKENS).last_hidden_state, causal_lm.base_model(TOKENS).last_hidden_state)


def test_random_weights_of_a_quantised_model(model_folder: Path) -> None:
    plain, _ = load_body(str(model_folder), "random", torch.float32)
    change_config(quantization_config={"quant_method": "gptq", "bits": 4})(model_folder)
    body, _ = load_body(str(model_folder), "random", torch.float32)
    assert torch.equal(body(TOKENS).last_hidden_state, plain(TOKENS).last_hidden_state)


def test_a_file_is_no_folder(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a file: give the folder with config\.json"):
        load_body(str(model_folder / "model.safetensors"), "pretrained", torch.float32)


def test_memory_that_runs_out_is_no_broken_model(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_body(str(model_folder), "pretrained", torch.float32)


THREE_WAYS = ("--qwen.model PATH", "--qwen.model embedded:tiny", "--qwen.init random", "HF_HUB_OFFLINE")


@pytest.mark.usefixtures("empty_hub_cache")
def test_hub_model_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PlatformError, match=r"'Qwen/Qwen2\.5-1\.5B'.*OfflineModeIsEnabled") as raised:
        load_body("Qwen/Qwen2.5-1.5B", "pretrained", torch.float32)
    assert all(way in str(raised.value) for way in THREE_WAYS)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("empty_hub_cache")
def test_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen_source, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(PlatformError, match="ReadTimeout") as raised:
            load_body("Qwen/Qwen2.5-1.5B", "pretrained", torch.float32)
    assert all(way in str(raised.value) for way in THREE_WAYS)


@pytest.mark.usefixtures("empty_hub_cache")
def test_a_quantised_hub_model_is_refused_before_its_download(monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(config={"quantization_config": {"quant_method": "fp8"}})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: about)
    monkeypatch.setattr(qwen_source, "snapshot_download", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(ConfigError, match=r"'Qwen/Qwen3-4B-FP8' is quantised \(fp8\)"):
        load_body("Qwen/Qwen3-4B-FP8", "pretrained", torch.float32)


VISION = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 32}


def test_of_a_model_that_also_sees_the_language_part_is_read(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 2, 2]}
    text = FAMILIES["qwen3_5"].to_dict() | {"rope_parameters": rope}
    config = Qwen3_5Config(text_config=text, vision_config=VISION | {"num_position_embeddings": 4})
    whole = Qwen3_5ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    body, _ = load_body(str(tmp_path), "pretrained", torch.float32)
    with torch.no_grad():
        expected = whole(input_ids=TOKENS, output_hidden_states=True, use_cache=False).hidden_states[-1]
        torch.testing.assert_close(body(TOKENS, use_cache=False).last_hidden_state, expected, rtol=0, atol=1e-6)
    drawn, _ = load_body(str(tmp_path), "random", torch.float32)
    names = [name for name, _ in body.named_parameters()]
    assert [name for name, _ in drawn.named_parameters()] == names
    assert not any("visual" in name for name in names)


def test_cached_hub_model_is_read_offline(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    cached = tmp_path / "hub" / "models--someone--grids"
    shutil.copytree(model_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    body, _ = load_body("someone/grids", "pretrained", torch.float32)
    local, _ = load_body(str(model_folder), "pretrained", torch.float32)
    assert torch.equal(body.norm.weight, local.norm.weight)
    assert torch.equal(body.embed_tokens.weight, local.embed_tokens.weight)
