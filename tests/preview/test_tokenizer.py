import huggingface_hub
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from arcdist.config import QwenConfig
from arcdist.data import Pair
from arcdist.errors import ConfigError, PlatformError
from arcdist.models import embedded
from arcdist.models.embedded import embedded_config
from arcdist.preview.tokenizer import TINY, load_tokenizer

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


def test_the_name_of_the_embedded_model_is_the_same():
    assert TINY == embedded.TINY


@pytest.mark.parametrize(
    ("qwen", "why"),
    [
        (QwenConfig(model=TINY), "qwen.model is embedded:tiny"),
        (QwenConfig(model="Qwen/Qwen2.5-0.5B", init="random"), "qwen.init is random"),
    ],
)
def test_the_embedded_tokenizer_says_why_it_is_used(qwen, why):
    tokenizer = load_tokenizer(qwen)
    assert tokenizer.name == f"arcdist's own tokenizer ({why})"
    assert tokenizer.decode(tokenizer.grids.encode([PAIR], QUERY)) == TEXT


def test_a_model_reads_back_its_own_tokens_with_the_special_ones(model):
    tokenizer = load_tokenizer(QwenConfig(model=str(model)))
    ids = tokenizer.grids.encode([PAIR], QUERY)
    assert ids.tolist() == [2, 13, 6, 3, 1, 6, 3, 13, 3, 2, 8, 3, 1]
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(np.array([2, 0])) == "I<|endoftext|>"
    assert tokenizer.name == f"the tokenizer of {model}"


def test_random_weights_need_no_tokenizer(model):
    (model / "tokenizer.json").unlink()
    name = load_tokenizer(QwenConfig(model=str(model), init="random")).name
    assert name == f"arcdist's own tokenizer ({model} has none)"
    with pytest.raises(ConfigError, match=r"has no tokenizer \(tokenizer\.json, .*or give --qwen\.model embedded:tiny"):
        load_tokenizer(QwenConfig(model=str(model)))


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    message = r"not in the local cache, .* `hf download Qwen/Qwen2\.5-1\.5B config\.json .* --qwen\.model embedded:tiny"
    with pytest.raises(PlatformError, match=message):
        load_tokenizer(QwenConfig())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded:big", "which has no configuration in the package"),
        ("/no/such/folder", "is neither a folder that exists nor a name of the Hub"),
    ],
)
def test_the_name_of_nothing(name, message):
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(QwenConfig(model=name))


def test_a_folder_that_is_no_models(model):
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"the tokenizer in .*model cannot be read"):
        load_tokenizer(QwenConfig(model=str(model)))
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_tokenizer(QwenConfig(model=str(model)))
