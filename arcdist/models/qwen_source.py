"""Qwen's frozen body: built with random weights, or read from where `locate_qwen` finds it."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers import logging as transformers_logging

from arcdist.data.text import (
    EMBEDDED_MODELS,
    TINY,
    GridTokenizer,
    Init,
    QwenSource,
    embedded_positions,
    embedded_tokenizer,
    has_random_weights,
    locate_qwen,
    read_tokenizer,
    require_model,
    ways_out,
)
from arcdist.errors import ArcdistError, ConfigError, PlatformError, is_out_of_memory, kind_and_reason

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
    "read_config",
    "read_parts",
    "require_unquantised",
    "shape_of",
    "weight_files",
]

HUB_SECONDS = 5.0
"""How long the Hub may take to say that it is there."""

_log = logging.getLogger(__name__)
_LONGEST_REASON = 300
_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".npz", ".onnx"}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"]


# Vocabulary, width, layers, heads, key-value heads, width of the MLP, whether input and output embeddings are one.
_SIZES = {
    TINY: (embedded_tokenizer().vocab_size, 32, 1, 1, 1, 64, False),
    "Qwen/Qwen2.5-0.5B": (151_936, 896, 24, 14, 2, 4864, True),
    "Qwen/Qwen2.5-1.5B": (151_936, 1536, 28, 12, 2, 8960, True),
    "Qwen/Qwen3-0.6B": (151_936, 1024, 28, 16, 8, 3072, True),
    "Qwen/Qwen3-4B": (151_936, 2560, 36, 32, 8, 9728, True),
}


def embedded_config(name: str) -> PretrainedConfig:
    """The configuration of one of `EMBEDDED_MODELS`."""
    vocabulary, width, layers, heads, key_value_heads, mlp, tied = _SIZES[name]
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": mlp,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": embedded_positions(name),
        "use_cache": False,
    }
    if name.startswith("Qwen/Qwen3-"):
        return Qwen3Config(**common, head_dim=128)
    return Qwen2Config(**common)


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
    same one. Matrices, of experts and convolutions too, are normal with the configuration's `initializer_range`, biases
    0; the decay of linear attention is log-uniform. All else, such as the scales of norms, stays as it was built: some
    models add 1 to a scale and some do not.
    """
    with sharding.building(dtype):
        body = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    std = getattr(config, "initializer_range", 0.02)
    for name, parameter in body.named_parameters():
        if parameter.is_meta:
            continue  # A shape without numbers.
        with sharding.whole(parameter), torch.no_grad():
            kind = name.rpartition(".")[2]
            # On the CPU, whatever holds the parameter: a GPU draws other numbers from the same seed.
            drawn, stream = torch.empty(parameter.shape, dtype=parameter.dtype), _stream(seed, name)
            if kind == "bias":
                parameter.zero_()
            elif kind == "A_log":
                if parameter.ndim == 1:  # Mamba's is a matrix, and no random one.
                    parameter.copy_(drawn.uniform_(0.01, 16.0, generator=stream).log_())
            elif parameter.ndim > 1:
                parameter.copy_(drawn.normal_(0.0, std, generator=stream))
    return body


def shape_of(config: PretrainedConfig) -> PreTrainedModel:
    """A model of that configuration without LM head and without its numbers, whole also where others are sharded."""
    with torch.device("meta"):
        body: PreTrainedModel = MODEL_MAPPING[type(config)](config)
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
    config, tokenizer = read_parts(source)
    head = None
    if has_random_weights(source.model, source.init):
        body = random_body(config, dtype, seed=seed, sharding=sharding)
        _log.info(
            "%s has untrained, random weights: it knows no language, and reads the tokens of %s.", model, tokenizer.name
        )
    else:
        causal_lm = _read_causal_lm(source, config, dtype, sharding)
        body, head = causal_lm.base_model, causal_lm.get_output_embeddings()
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


def read_parts(source: QwenSource) -> tuple[PretrainedConfig, GridTokenizer]:
    """The configuration of a model's language part, and the tokenizer that writes grids for it.

    Raises:
        ConfigError: as `read_config` does, or there is no such tokenizer, or it is another model's.
    """
    config, tokenizer = read_config(source), read_tokenizer(source)
    if tokenizer.symbol_ids.max() >= config.vocab_size or tokenizer.pad_id >= config.vocab_size:
        raise ConfigError(
            f"qwen.model {source.model!r}: its tokenizer knows {tokenizer.vocab_size} tokens, but the model embeds "
            f"only {config.vocab_size}: take the model's own tokenizer."
        )
    return config, tokenizer


def read_config(source: QwenSource) -> PretrainedConfig:
    """The configuration of a model's language part, from the package or from `source.folder`.

    Raises:
        ConfigError: it cannot be read, makes no model, or one that is quantised or does not read text from left to
            right.
    """
    folder, model = source.folder, source.model
    if folder is None:
        return embedded_config(model)
    require_model(model, folder)
    unreadable = (
        f"qwen.model {model!r}: config.json in {folder} is of no model that transformers {transformers.__version__} "
        f"can read; no code of a model's own folder is run"
    )
    with _library_errors(ConfigError, unreadable):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not has_random_weights(model, source.init):
        require_unquantised(model, config.to_dict())
    text = config.get_text_config()  # A model that also sees has one for each part.
    # Encoders say of themselves that they are no decoders; decoders say nothing.
    is_encoder = getattr(text, "is_encoder_decoder", False) or getattr(text, "is_decoder", None) is False
    if is_encoder or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _not_causal(model, config)
    unfit = f"qwen.model {model!r}: no model can be built from config.json in {folder}"
    with _library_errors(ConfigError, unfit):
        shape = shape_of(text)
    # Prompts are independent of right padding only because no token sees a later one.
    if any(getattr(module, "is_causal", True) is False for module in shape.modules()):
        raise _not_causal(model, config)
    return text


def _not_causal(model: str, config: PretrainedConfig) -> ConfigError:
    return ConfigError(
        f"qwen.model {model!r} (model type {config.model_type}) is no causal language model: choose one that is, such "
        f"as Qwen/Qwen2.5-1.5B."
    )


def require_unquantised(model: str, config: Mapping[str, Any]) -> None:
    """Check what a model's config.json says of its weights.

    Raises:
        ConfigError: they are quantised.
    """
    for part in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            if part.get(key) is not None:
                method = part[key].get("quant_method") if isinstance(part[key], Mapping) else None
                raise _quantised(model, method or f"{key} in config.json")


def _quantised(model: str, method: str) -> ConfigError:
    return ConfigError(
        f"qwen.model {model!r} is quantised ({method}), which is not supported: take the unquantised model."
    )


@contextmanager
def _library_errors(kind: type[ArcdistError], message: str) -> Iterator[None]:
    """Whatever a library makes of files or numbers that are not as it expects becomes a message with its words."""
    try:
        yield
    except Exception as error:  # each library has its own, and transformers those of what it builds on
        if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
            raise
        words = shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" …")
        raise kind(f"{message}. {words}") from error


def weight_files(source: QwenSource) -> list[Path]:
    """The safetensors that a model's weights are read from, each whole as far as its header says.

    Raises:
        PlatformError: there are none, or one is missing or broken.
        ConfigError: they are quantised.
    """
    folder, model = source.folder, source.model
    assert folder is not None
    remedy = "download the model again, or build it without weights by --qwen.init random."
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    if not files[0].is_file() and index.is_file():
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise PlatformError(
                f"qwen.model {model!r}: {index}, which names the files of the weights, cannot be read "
                f"({kind_and_reason(error)}): {remedy}"
            ) from error
    absent = [file.name for file in files if not file.is_file()]
    if absent and index.is_file():
        raise PlatformError(
            f"qwen.model {model!r}: {folder} lacks {len(absent)} of {len(files)} files of the weights "
            f"({', '.join(absent[:3])}): {remedy}"
        )
    if absent:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHTS)
        raise PlatformError(
            f"qwen.model {model!r}: {folder} holds no weights as safetensors, the only format that is read: "
            f"model.safetensors, or several files and model.safetensors.index.json "
            f"(it has {', '.join(others[:3]) or 'none of any format'}). Download or convert them, or build the model "
            f"without weights by --qwen.init random."
        )
    for file in files:
        # A file that was cut short, or that git-lfs put in its place, has no header that fits it.
        broken = f"qwen.model {model!r}: {file} is broken: {remedy.removesuffix('.')}"
        with _library_errors(PlatformError, broken), safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith(".weight")]  # noqa: SIM118 (no dictionary)
            packed = {tensors.get_slice(name).get_dtype() for name in names} - _FLOATS
        if packed:
            raise _quantised(model, f"{file.name} holds weights as {', '.join(sorted(packed))}")
    return files


def _read_causal_lm(
    source: QwenSource, config: PretrainedConfig, dtype: torch.dtype, sharding: Sharding
) -> PreTrainedModel:
    model, folder = source.model, source.folder
    weight_files(source)
    unread = f"qwen.model {model!r}: the weights in {folder} cannot be read"
    with _library_errors(PlatformError, unread), _quiet_transformers(), sharding.building(dtype):
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
        about = HfApi().model_info(model, timeout=HUB_SECONDS)
    except Exception as error:  # names, routes, proxies, certificates, rights: each of a class of its own
        unreachable = error
    else:
        require_unquantised(model, about.config or {})  # before gigabytes are downloaded
    try:
        folder = snapshot_download(
            model, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_files_only=unreachable is not None
        )
    except Exception as error:
        raise PlatformError(
            f"qwen.model {model!r} is no local folder, is not in the local cache, and the Hugging Face Hub does not "
            f"give it ({kind_and_reason(unreachable or error)}). {ways_out(model)}"
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
