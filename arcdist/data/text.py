"""Grids as text: one token a cell, a newline a row, a letter before each grid.

    I00
    07
    O70
    00
    I55
    O

`I` precedes an input and `O` an output: here one context pair, the query's input, and the mark after which its output
would begin.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from arcdist.data.tasks import Pair
from arcdist.errors import ConfigError, DataError

# L tokens, H W grid, S symbols
Grid = UInt8[np.ndarray, "H W"]

SYMBOLS = (*"0123456789", "\n", "I", "O")
"""The pieces of text that a task is written with; a colour is the symbol of its own number."""
NEWLINE, INPUT, OUTPUT = 10, 11, 12


@runtime_checkable
class TextTokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    name_or_path: str
    pad_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False, slots=True)
class GridTokenizer:
    """Writes the demonstrations and the query of a task as token ids."""

    symbol_ids: Int[np.ndarray, " S"]
    """Token id of each of `SYMBOLS`."""
    pad_id: int
    """Token id that fills a batch; no model looks at it."""
    vocab_size: int
    """Number of ids that the tokenizer knows."""

    def encode(self, context: Sequence[Pair], query: Grid) -> Int[np.ndarray, " L"]:
        """Token ids of the context pairs, the query's input and the mark that its output would follow.

        L = Σ (1 + height · (width + 1)) over the grids, and one for the last mark.

        Raises:
            DataError: a context pair has no output.
        """
        grids = [grid for pair in context for grid in pair.grids()] + [query]
        if len(grids) != 2 * len(context) + 1:
            raise DataError("A context pair has no output: only the query may lack one.")
        lengths = [1 + height * (width + 1) for height, width in (grid.shape for grid in grids)]
        symbols = np.empty(sum(lengths) + 1, dtype=np.uint8)
        start = 0
        for index, (grid, length) in enumerate(zip(grids, lengths, strict=True)):
            symbols[start] = OUTPUT if index % 2 else INPUT
            rows = symbols[start + 1 : start + length].reshape(len(grid), -1)
            rows[:, :-1] = grid
            rows[:, -1] = NEWLINE
            start += length
        symbols[start] = OUTPUT
        return self.symbol_ids[symbols]

    def decode(self, ids: Int[np.ndarray, " L"]) -> str:
        """The text of token ids, without padding.

        Raises:
            ValueError: an id is no symbol's.
        """
        text_of = dict(zip(self.symbol_ids.tolist(), SYMBOLS, strict=True)) | {self.pad_id: ""}
        unknown = sorted(set(ids.tolist()) - text_of.keys())
        if unknown:
            raise ValueError(f"Token ids {unknown[:5]} are no symbols of a grid.")
        return "".join(text_of[token] for token in ids.tolist())


def embedded_tokenizer() -> GridTokenizer:
    """The tokenizer of the models that arcdist builds itself: the 13 symbols and a padding token."""
    return GridTokenizer(np.arange(len(SYMBOLS)), pad_id=len(SYMBOLS), vocab_size=len(SYMBOLS) + 1)


def from_pretrained_tokenizer(tokenizer: TextTokenizer) -> GridTokenizer:
    """Look up the symbols in a pretrained tokenizer's vocabulary.

    Raises:
        ConfigError: a symbol is not a single token, or there is no token to pad with.
    """
    remedy = "Choose a model whose tokenizer splits digits, such as Qwen/Qwen2.5-1.5B, as qwen.model."
    symbol_ids: list[int] = []
    for symbol in SYMBOLS:
        pieces = tokenizer.encode(symbol, add_special_tokens=False)
        # An unknown symbol becomes the one unknown token, which the second unknown symbol then repeats.
        if len(pieces) != 1 or pieces[0] in symbol_ids:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no single token for {symbol!r} "
                f"(it gives {pieces}), but a grid is read at one token a cell. {remedy}"
            )
        symbol_ids += pieces
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad_id is None:
        name = tokenizer.name_or_path
        raise ConfigError(f"The tokenizer of {name!r} has neither a padding nor an end token. {remedy}")
    return GridTokenizer(np.array(symbol_ids), pad_id=pad_id, vocab_size=len(tokenizer))
