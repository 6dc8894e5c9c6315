"""Where a model is read from, and with which tokenizer."""

import shutil

import huggingface_hub
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from arcdist.data import Pair
from arcdist.data.qwen_files import EMBEDDED_MODELS, TINY, QwenSource, locate_qwen, read_tokenizer, ways_out
from arcdist.errors import ConfigError
from arcdist.models.qwen_source import embedded_config

HUB = "Qwen/Qwen2.5-1.5B"
PAIR = Pair(np.array([[0, 7]], np.uint8), np.array([[7], [0]], np.uint8))
QUERY = np.array([[5]], np.uint8)
TEXT = "I07\nO7\n0\nI5\nO"


@pytest.fixture
def model(tmp_path):
    """A model's folder without its weights: a byte-level tokenizer whose symbols have numbers of their own."""
    folder = tmp_path / "model"
    embedded_config(TINY).save_pretrained(folder)
    pieces = ["<|endoftext|>", "O", "I", "Ċ", *"9876543210"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def read(model, init="pretrained"):
    return read_tokenizer(locate_qwen(str(model), init))


def test_every_embedded_model_has_its_configuration_in_the_package():
    assert [embedded_config(name).hidden_size for name in EMBEDDED_MODELS] == [32, 896, 1536]


@pytest.mark.parametrize(("name", "init"), [(TINY, "pretrained"), (TINY, "random"), (HUB, "random")])
def test_the_package_comes_first(name, init, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    source = locate_qwen(name, init)
    assert source == QwenSource(model=name, init=init, kind="embedded")
    assert source.has_random_weights


def test_a_local_folder_comes_before_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    model.rename(tmp_path / HUB)
    source = locate_qwen(HUB, "pretrained")
    assert (source.kind, str(source.folder), source.has_random_weights) == ("folder", HUB, False)


def test_the_hub_is_looked_up_in_the_cache_only(cache, model):
    assert locate_qwen(HUB, "pretrained") == QwenSource(model=HUB, init="pretrained", kind="hub")
    snapshot = cache / "models--Qwen--Qwen2.5-1.5B" / "snapshots" / "0123abcd"
    shutil.copytree(model, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abcd")
    assert locate_qwen(HUB, "pretrained").folder == snapshot


@pytest.mark.parametrize(
    ("name", "init", "message"),
    [
        ("embedded:big", "pretrained", "which has no configuration in the package"),
        ("somebody/model", "random", "which has no configuration in the package"),
        ("/no/such/folder", "pretrained", "is neither a folder that exists nor a name of the Hub: .* embedded:tiny"),
    ],
)
def test_the_name_of_nothing(name, init, message):
    with pytest.raises(ConfigError, match=message):
        locate_qwen(name, init)


def test_the_ways_out_name_the_files_that_are_needed():
    assert ways_out("a/b").startswith("Run `hf download a/b` where there is a network")
    assert "`hf download a/b config.json`" in ways_out("a/b", "config.json")


@pytest.mark.parametrize(
    ("name", "init", "why"),
    [(TINY, "pretrained", "qwen.model is embedded:tiny"), (HUB, "random", "qwen.init is random")],
)
def test_the_embedded_tokenizer_says_why_it_is_used(name, init, why):
    tokenizer = read(name, init)
    assert tokenizer.name == f"arcdist's own tokenizer ({why})"
    assert tokenizer.decode(tokenizer.grids.encode([PAIR], QUERY)) == TEXT


def test_a_model_reads_back_its_own_tokens_with_the_special_ones(model):
    tokenizer = read(model)
    ids = tokenizer.grids.encode([PAIR], QUERY)
    assert ids.tolist() == [2, 13, 6, 3, 1, 6, 3, 13, 3, 2, 8, 3, 1]
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(np.array([2, 0])) == "I<|endoftext|>"
    assert tokenizer.name == f"the tokenizer of {model}"


def test_random_weights_need_no_tokenizer(model):
    (model / "tokenizer.json").unlink()
    assert read(model, "random").name == f"arcdist's own tokenizer ({model} has none)"
    with pytest.raises(ConfigError, match=r"has no tokenizer \(tokenizer\.json, .*or give --qwen\.model embedded:tiny"):
        read(model)


def test_a_folder_that_is_no_models(model):
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"the tokenizer in .*model cannot be read"):
        read(model)
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        read(model)
