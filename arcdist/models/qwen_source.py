"""Qwen's frozen body: built with random weights, or read from where `locate_qwen` finds it."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config
from transformers import logging as transformers_logging

from arcdist.data.text import (
    EMBEDDED_MODELS,
    EMBEDDED_POSITIONS,
    TINY,
    GridTokenizer,
    Init,
    QwenSource,
    embedded_tokenizer,
    has_random_weights,
    locate_qwen,
    read_tokenizer,
    ways_out,
)
from arcdist.errors import ConfigError, PlatformError

__all__ = [
    "EMBEDDED_MODELS",
    "TINY",
    "UNSHARDED",
    "LanguageModel",
    "Sharding",
    "embedded_config",
    "load_body",
    "load_language_model",
    "locate_qwen",
    "random_body",
]

HUB_SECONDS = 5.0
"""How long the Hub may take to say that it is there."""

_log = logging.getLogger(__name__)
_HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"]


# Vocabulary, width, layers, heads, key-value heads, width of the MLP, whether input and output embeddings are one.
_SIZES = {
    TINY: (embedded_tokenizer().vocab_size, 32, 1, 1, 1, 64, False),
    "Qwen/Qwen2.5-0.5B": (151_936, 896, 24, 14, 2, 4864, True),
    "Qwen/Qwen2.5-1.5B": (151_936, 1536, 28, 12, 2, 8960, True),
}


def embedded_config(name: str) -> Qwen2Config:
    """The configuration of one of `EMBEDDED_MODELS`."""
    vocabulary, width, layers, heads, key_value_heads, mlp, tied = _SIZES[name]
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=mlp,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        max_position_embeddings=EMBEDDED_POSITIONS,
        use_cache=False,
    )


@runtime_checkable
class Sharding(Protocol):
    """How a model comes into being where no process may hold it whole."""

    def building(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """While it lasts, transformers builds and loads models in shards of this precision."""

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager[None]:
        """While it lasts, the parameter is whole; what process 0 writes into it is shared out at the end."""


class Unsharded:
    """Every process holds all of a model."""

    def building(self, dtype: torch.dtype) -> AbstractContextManager[None]:  # noqa: ARG002
        """Change nothing."""
        return nullcontext()

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager[None]:  # noqa: ARG002
        """Change nothing: it is whole."""
        return nullcontext()


UNSHARDED = Unsharded()


def random_body(
    config: PretrainedConfig, dtype: torch.dtype, *, seed: int = 0, sharding: Sharding = UNSHARDED
) -> PreTrainedModel:
    """A model of that configuration without its LM head.

    Weights are drawn parameter by parameter, each from a stream of its own name: a model that is built in shards is the
    same one. Matrices are normal with the configuration's `initializer_range`, scales of norms 1, biases 0.
    """
    with sharding.building(dtype):
        body = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    std = getattr(config, "initializer_range", 0.02)
    for path, module in body.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.is_meta:
                continue  # A shape without numbers.
            with sharding.whole(parameter), torch.no_grad():
                if name.endswith("bias"):
                    parameter.zero_()
                elif isinstance(module, nn.Linear | nn.Embedding):
                    # On the CPU, whatever holds the parameter: a GPU draws other numbers from the same seed.
                    drawn = torch.empty(parameter.shape, dtype=parameter.dtype)
                    parameter.copy_(drawn.normal_(0.0, std, generator=_stream(seed, name)))
                elif parameter.ndim == 1:
                    parameter.fill_(1.0)
    return body


def _stream(seed: int, name: str) -> torch.Generator:
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class LanguageModel(NamedTuple):
    """The parts of a causal language model."""

    body: PreTrainedModel
    """Gives hidden states."""
    tokenizer: GridTokenizer
    head: nn.Module | None
    """Gives logits from them; it may share its weight with the body's embedding. None for random weights."""


def load_language_model(
    model: str,
    init: Init,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    sharding: Sharding = UNSHARDED,
) -> LanguageModel:
    """Give a causal language model, and the tokenizer that writes grids for it.

    No code of a model's repository is ever run, and weights are only read from safetensors.

    Args:
        model: a Hub name, a local folder, or one of `EMBEDDED_MODELS`.
        init: `random` builds the model from its configuration, without weights and without a download.
        dtype: precision of the weights.
        seed: of random weights.
        sharding: how the weights are shared out over processes.

    Raises:
        ConfigError: there is no such model, or it cannot read grids.
        PlatformError: its weights are not available.
    """
    source = locate_qwen(model, init)
    if source.kind == "hub":
        source = replace(source, folder=_hub_snapshot(model))
    config = embedded_config(model) if source.folder is None else read_config(source)
    tokenizer = read_tokenizer(source)
    head = None
    if has_random_weights(source.model, source.init):
        body = random_body(config, dtype, seed=seed, sharding=sharding)
        _log.info(
            "%s has untrained, random weights: it knows no language, and reads the tokens of %s.", model, tokenizer.name
        )
    else:
        causal_lm = _read_causal_lm(source, config, dtype, sharding)
        body, head = causal_lm.base_model, causal_lm.get_output_embeddings()
    if tokenizer.symbol_ids.max() >= body.config.vocab_size or tokenizer.pad_id >= body.config.vocab_size:
        raise ConfigError(
            f"qwen.model {model!r}: its tokenizer knows {tokenizer.vocab_size} tokens, but the model embeds only "
            f"{body.config.vocab_size}: take the model's own tokenizer."
        )
    # Prompts are independent of right padding only because no token sees a later one.
    if any(getattr(module, "is_causal", True) is False for module in body.modules()):
        raise ConfigError(
            f"qwen.model {model!r} ({body.config.model_type}) is no causal language model: "
            f"choose one that is, such as Qwen/Qwen2.5-1.5B."
        )
    return LanguageModel(body, tokenizer, head)


def load_body(
    model: str,
    init: Init,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    sharding: Sharding = UNSHARDED,
) -> tuple[PreTrainedModel, GridTokenizer]:
    """Give what `load_language_model` does, without the LM head."""
    loaded = load_language_model(model, init, dtype, seed=seed, sharding=sharding)
    return loaded.body, loaded.tokenizer


def read_config(source: QwenSource) -> PretrainedConfig:
    """The configuration in `source.folder`.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"qwen.model {source.model!r}: {source.folder} cannot be read: {error}") from error


def _read_causal_lm(
    source: QwenSource, config: PretrainedConfig, dtype: torch.dtype, sharding: Sharding
) -> PreTrainedModel:
    model, folder = source.model, source.folder
    assert folder is not None
    if not any(folder.glob("*.safetensors")):
        raise PlatformError(
            f"qwen.model {model!r}: {folder} holds no weights as safetensors, the only format that is read: "
            f"download or convert them, or build the model without weights by --qwen.init random."
        )
    try:
        with _quiet_transformers(), sharding.building(dtype):
            causal_lm, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report, and get our own message
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise PlatformError(f"qwen.model {model!r}: the weights in {folder} cannot be read: {error}") from error
    absent = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if absent:
        raise PlatformError(
            f"qwen.model {model!r}: the weights in {folder} lack or misshape {len(absent)} parameters of the model "
            f"({', '.join(absent[:3])}, …): download them again."
        )
    return causal_lm


def _hub_snapshot(model: str) -> Path:
    """The local folder of a Hub model, brought up to date if the Hub can be reached."""
    unreachable: Exception | None = None
    try:
        # A download asks the same without a time limit, and would wait for a silent server for ever.
        HfApi().model_info(model, timeout=HUB_SECONDS)
    except Exception as error:  # names, routes, proxies, certificates, rights: each of a class of its own
        unreachable = error
    try:
        folder = snapshot_download(
            model, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_files_only=unreachable is not None
        )
    except Exception as error:
        reason = str(unreachable or error).strip().partition("\n")[0]
        raise PlatformError(
            f"qwen.model {model!r} is no local folder, is not in the local cache, and the Hugging Face Hub does not "
            f"give it ({type(unreachable or error).__name__}: {reason}). {ways_out(model)}"
        ) from error
    if unreachable is not None:
        _log.info("The Hub was not reached (%s): %s is read from %s.", type(unreachable).__name__, model, folder)
    return Path(folder)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep the loading bar and the load report, which repeats what the caller checks, off the console."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
