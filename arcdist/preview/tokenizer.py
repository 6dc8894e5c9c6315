"""The tokenizer of a configuration's Qwen, without its weights and without a download."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from arcdist.config import QwenConfig
from arcdist.data import GridTokenizer, embedded_tokenizer, from_pretrained_tokenizer
from arcdist.errors import ConfigError, PlatformError
from arcdist.paths import expanded

TINY = "embedded:tiny"
"""The same as in `arcdist.models`, whose import takes longer than a preview."""

_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewTokenizer:
    """A tokenizer that can be read back."""

    grids: GridTokenizer
    """Writes tasks as token ids."""
    decode: Callable[[Int[np.ndarray, " L"]], str]
    """The text of token ids, special tokens included, as their own tokenizer tells it."""
    name: str
    """Whose tokens these are, in words."""


def load_tokenizer(qwen: QwenConfig) -> PreviewTokenizer:
    """The tokenizer that a run would write grids with.

    Raises:
        ConfigError: no such model, or one that cannot read grids.
        PlatformError: it is neither in a local folder nor in the cache.
    """
    folder = expanded(qwen.model)
    if qwen.model == TINY:
        return _embedded(f"qwen.model is {TINY}")
    if folder.is_dir():
        return _from_folder(folder, qwen)
    if qwen.init == "random" or qwen.model.startswith("embedded:"):
        from arcdist.models.embedded import EMBEDDED_MODELS

        if qwen.init == "random" and qwen.model in EMBEDDED_MODELS:
            return _embedded("qwen.init is random")
        raise ConfigError(
            f"qwen.model is {qwen.model!r}, which has no configuration in the package and is no local folder: "
            f"choose {TINY}, a folder with config.json, or {' or '.join(EMBEDDED_MODELS[1:])} with --qwen.init random."
        )
    return _from_folder(_cached(qwen.model), qwen)


def _embedded(reason: str) -> PreviewTokenizer:
    tokenizer = embedded_tokenizer()
    return PreviewTokenizer(grids=tokenizer, decode=tokenizer.decode, name=f"arcdist's own tokenizer ({reason})")


def _from_folder(folder: Path, qwen: QwenConfig) -> PreviewTokenizer:
    from transformers import AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ConfigError(f"qwen.model {qwen.model!r}: {folder} has no config.json, so it is not a folder of a model.")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        if qwen.init == "random":
            return _embedded(f"{folder} has none")
        raise ConfigError(
            f"qwen.model {qwen.model!r}: {folder} has no tokenizer ({', '.join(_VOCABULARIES)}): copy the model's "
            f"there, or give --qwen.model {TINY}."
        )
    try:
        pretrained = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"qwen.model {qwen.model!r}: the tokenizer in {folder} cannot be read: {error}") from error

    def decode(ids: Int[np.ndarray, " L"]) -> str:
        return str(pretrained.decode(ids.tolist(), skip_special_tokens=False))

    return PreviewTokenizer(
        grids=from_pretrained_tokenizer(pretrained), decode=decode, name=f"the tokenizer of {qwen.model}"
    )


def _cached(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except HFValidationError as error:
        raise ConfigError(f"qwen.model {model!r} is neither a folder that exists nor a name of the Hub.") from error
    except LocalEntryNotFoundError as error:
        raise PlatformError(
            f"qwen.model {model!r} is no local folder and not in the local cache, and a preview downloads nothing. "
            f"Three ways out: `hf download {model} {' '.join(_FILES)}` where there is a network; --qwen.model PATH, a "
            f"folder with the model's files; or --qwen.model {TINY}, whose tokens are other numbers for the same text."
        ) from error
