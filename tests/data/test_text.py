"""Grids as text: the layout by hand, and equality with a byte-level BPE tokenizer that splits as Qwen's does."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arcdist.data.tasks import Pair
from arcdist.data.text import embedded_tokenizer, from_pretrained_tokenizer
from arcdist.errors import ConfigError, DataError

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
    tokenizer = from_pretrained_tokenizer(pretrained)
    tokens = tokenizer.encode([PAIR, PAIR], QUERY)
    assert tokens.tolist() == pretrained.encode(tokenizer.decode(tokens), add_special_tokens=False)
    assert tokenizer.decode(tokens) == "I00\n07\nO701\n" + TEXT
    assert tokenizer.pad_id == pretrained.pad_token_id
    assert tokenizer.vocab_size == len(pretrained)


def test_digits_that_share_the_unknown_token_are_refused() -> None:
    tokenizer = word_tokenizer([*"0123456", "\n", "I", "O"], pad_token="<pad>")
    with pytest.raises(ConfigError, match="no single token for '8'"):
        from_pretrained_tokenizer(tokenizer)


def test_end_token_pads_where_there_is_no_padding_token() -> None:
    words = [*"0123456789", "\n", "I", "O", "<end>"]
    assert from_pretrained_tokenizer(word_tokenizer(words, eos_token="<end>")).pad_id == 14
    with pytest.raises(ConfigError, match="neither a padding nor an end token"):
        from_pretrained_tokenizer(word_tokenizer(words))


def test_digit_of_two_tokens_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # the space is its own token
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    with pytest.raises(ConfigError, match=r"'0' \(it gives \[\d+, \d+\]\)"):
        from_pretrained_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>"))


def test_context_pair_without_output_is_refused() -> None:
    with pytest.raises(DataError, match="no output"):
        embedded_tokenizer().encode([Pair(QUERY, None)], QUERY)
