"""Where Qwen's configuration, tokenizer and weights are read from: decided here for a run, a preview and the doctor.

Nothing here needs `arcdist.models`, whose import takes longer than a preview.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from jaxtyping import Int

from arcdist.data.text import GridTokenizer, embedded_tokenizer, from_pretrained_tokenizer
from arcdist.errors import ConfigError
from arcdist.files import expanded

Init: TypeAlias = Literal["pretrained", "random"]

TINY = "embedded:tiny"
"""A Qwen2 small enough to train beside the agent on a laptop's CPU, with a vocabulary of grids only."""
EMBEDDED_MODELS = (TINY, "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B")
"""Names whose configuration is in the package."""

_LARGE = " or ".join(EMBEDDED_MODELS[1:])
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


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

    @property
    def has_random_weights(self) -> bool:
        """Whether its weights are drawn, not read."""
        return self.kind == "embedded" or self.init == "random"


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
        if not (folder / "config.json").is_file():
            raise ConfigError(f"qwen.model {model!r}: {folder} has no config.json, so it is not a folder of a model.")
        return QwenSource(model=model, init=init, kind="folder", folder=folder)
    if init == "random" or model.startswith("embedded:"):
        raise ConfigError(
            f"qwen.model is {model!r}, which has no configuration in the package and is no local folder: "
            f"choose {TINY}, a folder with config.json, or {_LARGE} with --qwen.init random."
        )
    try:
        cached = Path(snapshot_download(model, local_files_only=True))
    except HFValidationError as error:
        raise ConfigError(
            f"qwen.model {model!r} is neither a folder that exists nor a name of the Hub: give one of these, or {TINY}."
        ) from error
    except LocalEntryNotFoundError:
        return QwenSource(model=model, init=init, kind="hub")
    return QwenSource(model=model, init=init, kind="hub", folder=cached)


def ways_out(model: str, *files: str) -> str:
    """What to do about a Hub model that cannot be had; `files` are those needed of it, if not all."""
    return (
        f"Run `hf download {' '.join((model, *files))}` where there is a network, which fills the cache (HF_HOME; "
        f"HF_HUB_OFFLINE=1 then reads it without one), or give --qwen.model PATH, a folder with the model's files; "
        f"--qwen.model {TINY}, a small untrained model; or --qwen.init random, random weights for {_LARGE}."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenTokenizer:
    """Writes grids as a model's tokens, and reads them back."""

    grids: GridTokenizer
    decode: Callable[[Int[np.ndarray, " L"]], str]
    """The text of token ids, special tokens included."""
    name: str
    """Whose tokens these are, in words."""


def read_tokenizer(source: QwenSource) -> QwenTokenizer:
    """The tokenizer of a model that is in the package or whose files are in `source.folder`.

    Raises:
        ConfigError: the folder has none (random weights then read arcdist's own tokens), it cannot be read, or it
            cannot write grids.
    """
    folder = source.folder
    if folder is None:
        return _own(f"qwen.model is {TINY}" if source.model == TINY else "qwen.init is random")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        if source.has_random_weights:
            return _own(f"{folder} has none")
        raise ConfigError(
            f"qwen.model {source.model!r}: {folder} has no tokenizer ({', '.join(_VOCABULARIES)}): copy the model's "
            f"there, or give --qwen.model {TINY}."
        )
    from transformers import AutoTokenizer  # takes a second, and arcdist's own tokens do not need it

    try:
        pretrained = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"qwen.model {source.model!r}: the tokenizer in {folder} cannot be read: {error}") from error
    return QwenTokenizer(
        grids=from_pretrained_tokenizer(pretrained),
        decode=lambda ids: str(pretrained.decode(ids.tolist(), skip_special_tokens=False)),
        name=f"the tokenizer of {source.model}",
    )


def _own(reason: str) -> QwenTokenizer:
    tokenizer = embedded_tokenizer()
    return QwenTokenizer(grids=tokenizer, decode=tokenizer.decode, name=f"arcdist's own tokenizer ({reason})")
