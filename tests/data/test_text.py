"""Grids as text by hand and as a byte-level BPE tokenizer writes them; where a model is read from."""

import json
import re
import shutil
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arcdist.data.tasks import Pair
from arcdist.data.text import (
    EMBEDDED_MODELS,
    TINY,
    QwenSource,
    embedded_tokenizer,
    from_pretrained_tokenizer,
    has_random_weights,
    locate_qwen,
    read_tokenizer,
    ways_out,
)
from arcdist.errors import ConfigError, DataError
from arcdist.models.qwen_source import embedded_config

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PAIR = Pair(np.array([[0, 0], [0, 7]], np.uint8), np.array([[7, 0, 1]], np.uint8))
QUERY = np.array([[5], [9]], np.uint8)
TEXT = "I00\n07\nO701\nI5\n9\nO"

side = st.integers(1, 30)
grid = st.tuples(side, side).flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9)))


def qwen_like_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Input: 12 34\n\n56 Output 00\n" * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>")


def word_tokenizer(words: list[str], **special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<unk>", *words])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), unk_token="<unk>", **special
    )


def test_layout_by_hand() -> None:
    tokenizer = embedded_tokenizer()
    tokens = tokenizer.encode([PAIR], QUERY)
    newline, in_, out = 10, 11, 12
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [
        *(in_, 0, 0, newline, 0, 7, newline),
        *(out, 7, 0, 1, newline),
        *(in_, 5, newline, 9, newline),
        out,
    ]
    assert tokenizer.decode(tokens) == TEXT
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (13, 14)


def test_an_output_ends_where_a_next_pair_would_begin() -> None:
    tokenizer = embedded_tokenizer()
    output = tokenizer.encode_output(PAIR.input)
    assert output.dtype == np.int64
    assert output.tolist() == [0, 0, 10, 0, 7, 10, 11]
    pair = Pair(PAIR.input, PAIR.output)
    longer = tokenizer.encode([pair, pair], QUERY)
    prompt, output = tokenizer.encode([], pair.input), tokenizer.encode_output(pair.output)
    assert longer[: len(prompt) + len(output)].tolist() == [*prompt, *output]


def test_the_largest_output_finds_room() -> None:
    tokenizer = embedded_tokenizer()
    largest = tokenizer.encode_output(np.zeros((30, 30), np.uint8))
    assert tokenizer.max_tokens - tokenizer.leaving_room().max_tokens == len(largest) == 931
    assert replace(tokenizer, max_tokens=None).leaving_room().max_tokens is None


def test_padding_is_not_decoded() -> None:
    tokenizer = embedded_tokenizer()
    assert tokenizer.decode(np.array([11, 3, 13, 13])) == "I3"
    with pytest.raises(ValueError, match=re.escape("[14]")):
        tokenizer.decode(np.array([11, 14]))


@given(st.lists(st.tuples(grid, grid), max_size=3), grid)
def test_length_is_one_token_a_cell_a_row_and_a_mark(
    pairs: list[tuple[np.ndarray, np.ndarray]], query: np.ndarray
) -> None:
    context = [Pair(*pair) for pair in pairs]
    grids = [grid for pair in pairs for grid in pair] + [query]
    tokenizer = embedded_tokenizer()
    tokens = tokenizer.encode(context, query)
    assert len(tokens) == sum(1 + h * (w + 1) for h, w in (grid.shape for grid in grids)) + 1
    rows = [f"{mark}{text}" for mark, text in zip("IO" * len(grids), map(written, grids), strict=False)]
    assert tokenizer.decode(tokens) == "".join(rows) + "O"


def written(grid: np.ndarray) -> str:
    return "".join("".join(map(str, row)) + "\n" for row in grid.tolist())


def test_pretrained_ids_are_those_of_the_tokenized_text() -> None:
    pretrained = qwen_like_tokenizer()
    tokenizer = from_pretrained_tokenizer(pretrained, "a/b")
    tokens = tokenizer.encode([PAIR, PAIR], QUERY)
    assert tokens.tolist() == pretrained.encode(tokenizer.decode(tokens), add_special_tokens=False)
    assert tokenizer.decode(tokens) == "I00\n07\nO701\n" + TEXT
    assert tokenizer.pad_id == pretrained.pad_token_id
    assert tokenizer.vocab_size == len(pretrained)


def test_digits_that_share_the_unknown_token_are_refused() -> None:
    tokenizer = word_tokenizer([*"0123456", "\n", "I", "O"], pad_token="<pad>")
    with pytest.raises(ConfigError, match="no single token for '8'"):
        from_pretrained_tokenizer(tokenizer, "a/b")


def test_end_token_pads_where_there_is_no_padding_token() -> None:
    words = [*"0123456789", "\n", "I", "O", "<end>"]
    assert from_pretrained_tokenizer(word_tokenizer(words, eos_token="<end>"), "a/b").pad_id == 14
    with pytest.raises(ConfigError, match="neither a padding nor an end token"):
        from_pretrained_tokenizer(word_tokenizer(words), "a/b")


def test_digit_of_two_tokens_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # the space is its own token
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    with pytest.raises(ConfigError, match=r"'0' \(it gives \[\d+, \d+\]\)"):
        from_pretrained_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>"), "a/b")


def test_context_pair_without_output_is_refused() -> None:
    with pytest.raises(DataError, match="no output"):
        embedded_tokenizer().encode([Pair(QUERY, None)], QUERY)


HUB = "Qwen/Qwen2.5-1.5B"


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
    assert [embedded_config(name).hidden_size for name in EMBEDDED_MODELS] == [32, 896, 1536, 1024, 2560]


@pytest.mark.parametrize(("name", "init"), [(TINY, "pretrained"), (TINY, "random"), (HUB, "random")])
def test_the_package_comes_first(name, init, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    source = locate_qwen(name, init)
    assert source == QwenSource(model=name, init=init, kind="embedded")
    assert has_random_weights(name, init)


@pytest.mark.parametrize(
    ("model", "init", "expected"),
    [
        ("Qwen/Qwen2.5-1.5B", "pretrained", False),
        ("Qwen/Qwen2.5-1.5B", "random", True),
        (TINY, "pretrained", True),
        (TINY, "random", True),
        ("models/mine", "pretrained", False),
    ],
)
def test_whether_weights_are_random(model: str, init, expected: bool):
    assert has_random_weights(model, init) is expected


def test_a_local_folder_comes_before_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    model.rename(tmp_path / HUB)
    source = locate_qwen(HUB, "pretrained")
    assert (source.kind, str(source.folder)) == ("folder", HUB)


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
    assert tokenizer.decode(tokenizer.encode([PAIR], QUERY)) == TEXT


def test_a_folder_gives_the_ids_of_its_own_vocabulary(model):
    tokenizer = read(model)
    assert tokenizer.symbol_ids.tolist() == [*range(13, 3, -1), 3, 2, 1]
    assert tokenizer.decode(tokenizer.encode([PAIR], QUERY)) == TEXT
    assert (tokenizer.pad_id, tokenizer.name) == (0, f"the tokenizer of {model}")


@pytest.mark.parametrize("init", ["pretrained", "random"])
@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "qwen2", "max_position_embeddings": 77}, 77),
        ({"model_type": "qwen2"}, 32_768),  # not written because it is the default
        ({"model_type": "gpt2", "n_positions": 77}, 77),
        ({"model_type": "bloom"}, None),
        ({"model_type": "qwen3_5", "text_config": {"max_position_embeddings": 77}}, 77),
        ({"model_type": "nobodys", "max_position_embeddings": 77}, None),
    ],
)
def test_a_prompt_may_have_as_many_tokens_as_its_model_has_positions(model, config, positions, init):
    (model / "config.json").write_text(json.dumps(config))
    if init == "random":
        (model / "tokenizer.json").unlink()
    assert read(model, init).max_tokens == positions


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
