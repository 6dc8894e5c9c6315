"""Grids as a model's tokens, and where the tokenizer and the model come from.

A grid is one token a cell and a newline a row, after a letter: `I` before an input and `O` before an output.

    I00
    07
    O70
    00
    I55
    O

This is one context pair, the query's input, and the mark after which its output would begin. Nothing here needs
`arcdist.models`, whose import takes longer than a preview.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from jaxtyping import Int, UInt8

from arcdist.data.tasks import MAX_SIDE, Pair
from arcdist.errors import ConfigError, DataError, kind_and_reason
from arcdist.files import expanded

# L tokens, H W grid, S symbols.

SYMBOLS = (*"0123456789", "\n", "I", "O")
"""The pieces of text that a task is written with; a colour is the symbol of its own number."""
NEWLINE, INPUT, OUTPUT = 10, 11, 12

Init: TypeAlias = Literal["pretrained", "random"]

TINY = "embedded:tiny"
"""A Qwen2 small enough to train beside the agent on a laptop's CPU, with a vocabulary of grids only."""
EMBEDDED_MODELS = (TINY, "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B")
"""Names whose configuration is in the package."""


def embedded_positions(model: str) -> int:
    """How many tokens one of `EMBEDDED_MODELS` reads at most."""
    return 40_960 if model.startswith("Qwen/Qwen3-") else 32_768


def grid_tokens(height: int, width: int) -> int:
    """Tokens of a grid: its letter, the cells, and the end of each row."""
    return 1 + height * (width + 1)


_LARGE = f"{', '.join(EMBEDDED_MODELS[1:-1])} or {EMBEDDED_MODELS[-1]}"
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GridTokenizer:
    """Writes the demonstrations and the query of a task as token ids."""

    symbol_ids: Int[np.ndarray, " S"]
    """Token id of each of `SYMBOLS`."""
    pad_id: int
    """Token id that fills a batch; no model looks at it."""
    vocab_size: int
    """Number of ids that the tokenizer knows."""
    name: str
    """Whose tokens these are, in words."""
    max_tokens: int | None = None
    """Tokens that a prompt may have: positions of the model that reads it; None if it has any number."""

    def encode(self, context: Sequence[Pair], query: UInt8[np.ndarray, "H W"]) -> Int[np.ndarray, " L"]:
        """Token ids of the context pairs, the query's input and the mark that its output would follow.

        L is the sum of `grid_tokens` over the grids, and one for the last mark.

        Raises:
            DataError: a context pair has no output.
        """
        grids = [grid for pair in context for grid in pair.grids()] + [query]
        if len(grids) != 2 * len(context) + 1:
            raise DataError("A context pair has no output: only the query may lack one.")
        lengths = [grid_tokens(*grid.shape) for grid in grids]
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

    def encode_output(self, output: UInt8[np.ndarray, "H W"]) -> Int[np.ndarray, " L"]:
        """Token ids of an output that follows `encode`'s, and of the mark that ends it: a next pair's input begins.

        L is `grid_tokens` of the output: the mark is at its end here.
        """
        rows = np.full((output.shape[0], output.shape[1] + 1), NEWLINE, dtype=np.uint8)
        rows[:, :-1] = output
        return self.symbol_ids[np.append(rows, np.uint8(INPUT))]

    def leaving_room(self) -> "GridTokenizer":
        """The same for a model that also writes an output after each prompt: the largest must find positions."""
        longest = grid_tokens(MAX_SIDE, MAX_SIDE)
        return replace(self, max_tokens=None if self.max_tokens is None else self.max_tokens - longest)

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


def embedded_tokenizer(
    reason: str = "the model is its own", max_tokens: int | None = embedded_positions(TINY)
) -> GridTokenizer:
    """The tokenizer of the models that arcdist builds itself: the 13 symbols and a padding token."""
    return GridTokenizer(
        symbol_ids=np.arange(len(SYMBOLS)),
        pad_id=len(SYMBOLS),
        vocab_size=len(SYMBOLS) + 1,
        name=f"arcdist's own tokenizer ({reason})",
        max_tokens=max_tokens,
    )


def from_pretrained_tokenizer(tokenizer: Any, model: str, max_tokens: int | None = None) -> GridTokenizer:
    """Look up the symbols in the vocabulary of a Hugging Face tokenizer.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        model: whose it is, for messages.
        max_tokens: positions of that model.

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
                f"The tokenizer of {model!r} has no single token for {symbol!r} (it gives {pieces}), but a grid is "
                f"read at one token a cell. {remedy}"
            )
        symbol_ids += pieces
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad_id is None:
        raise ConfigError(f"The tokenizer of {model!r} has neither a padding nor an end token. {remedy}")
    return GridTokenizer(
        symbol_ids=np.array(symbol_ids),
        pad_id=pad_id,
        vocab_size=len(tokenizer),
        name=f"the tokenizer of {model}",
        max_tokens=max_tokens,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenSource:
    """Where a model is read from."""

    model: str
    """Its name in the configuration."""
    init: Init
    kind: Literal["embedded", "folder", "hub"]
    """The package, a local folder, or the Hugging Face Hub."""
    folder: Path | None = None
    """The local folder, or the Hub's files in the cache, perhaps not all; None if there are none."""


def has_random_weights(model: str, init: Init) -> bool:
    """Whether a model's weights are drawn, and not those that are known by its name."""
    return init == "random" or model == TINY


def locate_qwen(model: str, init: Init) -> QwenSource:
    """Find a model by its name: in the package, else in a local folder, else on the Hub, as far as the cache has it.

    Nothing is downloaded.

    Args:
        model: a Hub name, a local folder, or one of `EMBEDDED_MODELS`.
        init: `random` needs the configuration only.

    Raises:
        ConfigError: there is no such model.
    """
    if model == TINY or (init == "random" and model in EMBEDDED_MODELS):
        return QwenSource(model=model, init=init, kind="embedded")
    folder = expanded(model)
    if folder.is_dir():
        require_model(model, folder)
        return QwenSource(model=model, init=init, kind="folder", folder=folder)
    if folder.is_file():
        raise ConfigError(f"qwen.model {model!r} is a file: give the folder with config.json and *.safetensors.")
    if init == "random" or model.startswith("embedded:"):
        raise ConfigError(
            f"qwen.model is {model!r}, which has no configuration in the package and is no local folder: "
            f"choose {TINY}, a folder with config.json, or {_LARGE} with --qwen.init random."
        )
    try:
        cached: Path | None = Path(snapshot_download(model, local_files_only=True))
    except HFValidationError as error:
        raise ConfigError(
            f"qwen.model {model!r} is neither a folder that exists nor a name of the Hub: give one of these, or {TINY}."
        ) from error
    except LocalEntryNotFoundError:
        cached = None
    return QwenSource(model=model, init=init, kind="hub", folder=cached)


def require_model(model: str, folder: Path) -> None:
    """Check that a folder is one of a model and not of an adapter, which transformers would put on another base.

    Raises:
        ConfigError: it is not.
    """
    where = f"qwen.model {model!r}: {folder}"
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{where} holds an adapter (adapter_config.json), which is not read: give the model that it belongs to, or "
            f"one that it was merged into, without that file."
        )
    if not (folder / "config.json").is_file():
        gguf = min((path.name for path in folder.glob("*.gguf")), default=None)
        found = "so it is not a folder of a model"
        if gguf is not None:
            found = f"but GGUF ({gguf}), which is not read: take the model's safetensors, with config.json"
        raise ConfigError(f"{where} has no config.json, {found}.")


def ways_out(model: str, *files: str) -> str:
    """What to do about a Hub model that cannot be had; `files` are those needed of it, if not all."""
    return (
        f"Run `hf download {' '.join((model, *files))}` where there is a network, which fills the cache (HF_HOME; "
        f"HF_HUB_OFFLINE=1 then reads it without one), or give --qwen.model PATH, a folder with the model's files; "
        f"--qwen.model {TINY}, a small untrained model; or --qwen.init random, random weights for {_LARGE}."
    )


def read_tokenizer(source: QwenSource) -> GridTokenizer:
    """The tokenizer of a model that is in the package or whose files are in `source.folder`.

    Raises:
        ConfigError: the folder has none (random weights then read arcdist's own tokens), it cannot be read, or it
            cannot write grids.
    """
    folder = source.folder
    if folder is None:
        reason = f"qwen.model is {TINY}" if source.model == TINY else "qwen.init is random"
        return embedded_tokenizer(reason, embedded_positions(source.model))
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        if has_random_weights(source.model, source.init):
            return embedded_tokenizer(f"{folder} has none", _positions(folder))
        raise ConfigError(
            f"qwen.model {source.model!r}: {folder} has no tokenizer ({', '.join(_VOCABULARIES)}): copy the model's "
            f"there, or give --qwen.model {TINY}."
        )
    from transformers import AutoTokenizer  # takes a second, and arcdist's own tokens do not need it

    try:
        pretrained = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of transformers, of tokenizers, of what reads a vocabulary: each has its own
        raise ConfigError(
            f"qwen.model {source.model!r}: the tokenizer in {folder} cannot be read: copy the model's there again. "
            f"{kind_and_reason(error)}"
        ) from error
    return from_pretrained_tokenizer(pretrained, source.model, _positions(folder))


def _positions(folder: Path) -> int | None:
    """How many positions a model has, however its configuration calls them; None if any number, or it is unreadable."""
    from transformers import AutoConfig  # takes a second too

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # of transformers and of what it builds on; `read_config` says what is wrong with it
        return None
    return getattr(config.get_text_config(), "max_position_embeddings", None)
